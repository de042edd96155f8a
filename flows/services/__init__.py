"""Prefect's API, Dask's cluster, and where maps are solved."""
