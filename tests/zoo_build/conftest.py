"""Prefect's API, for the flow that builds a model."""

from tests.flow_setup import api

__all__ = ["api"]
