"""Places for artefacts, for these tests alone: the library's need none, and importing them takes time."""

from tests.places import place, s3, store

__all__ = ["place", "s3", "store"]
