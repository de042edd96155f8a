"""The operations rehearsal: everything that docs/operations.md describes, started, used and shut down on one machine.

python -m tests.rehearsal
"""
