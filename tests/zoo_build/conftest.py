"""Prefect's API, for the flow that pre-trains."""

from tests.flow_setup import api

__all__ = ["api"]
