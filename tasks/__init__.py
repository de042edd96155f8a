"""Prefect tasks: open references, call `bico`, store. One thin module per step, no maths."""
