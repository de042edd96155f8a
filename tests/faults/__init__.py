"""Kill, corrupt, race: faults put into the store and into whole runs, and what must hold after each.

work      a small pipeline on a store, run in processes that may die
trials    one fault at a time on that pipeline: inject, look, run again, compare
catalogue which faults there are, and how many of each make a long session
runs      the same with the real flow: its process, a Dask worker, the Prefect server, MLflow
session   the long session: `make faults`
"""
