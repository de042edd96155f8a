"""Kill, corrupt, race: faults put into the store and into whole runs, and what must hold after each.

work           a small pipeline on a store, run in processes that may die
trials         one fault at a time on that pipeline: inject, look, run again, compare
catalogue      which faults there are, and which of them every run of the test suite tries
flow_child     the same for a short transfer: what runs in processes that may die
servers        what the transfer talks to: a Prefect server, Dask workers, an MLflow server
runs           one fault at a time on the transfer
run_catalogue  which faults of whole runs there are
disks, wire    real disks that are full or read-only; connections that can be cut
warm           processes that cost milliseconds to start
residue        what may not be left when a fault is over
mutations      stores that are wrong on purpose, which the faults must notice
journal        what came of each fault, and the tables
injections     what a session injects, one by one
jobs           several of them at once, each in a process of its own
session        the long session: `make faults`
"""
