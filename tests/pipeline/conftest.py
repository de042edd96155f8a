"""Servers and clusters, for these tests alone: importing them takes longer than most tests of the library."""

from tests.flow_setup import api, bench, first_run, ran, releases, runs_database, scheduler

__all__ = ["api", "bench", "first_run", "ran", "releases", "runs_database", "scheduler"]
