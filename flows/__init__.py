"""Flows: order, fan-out, and the command line. No maths here."""
