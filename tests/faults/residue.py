"""Stale state: what may not be left when a fault is over and all its processes are dead."""

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from storage import bucket, gc
from storage.artefacts import ArtefactStore
from storage.leases import LEASES
from storage.locks import locked
from tests.places import BucketPlace, Place

EVER = float("-inf")
"""An age that everything has, also what a clock that was ahead has dated into the future."""


def stale(place: Place, staging: Iterable[Path] = ()) -> list[str]:
    """Returns what is left that should not be; empties the place on the way.

    Arguments:
        staging: Of other machines that used the place, for a bucket.
    """
    found = [f"{key}: {fault}" for key, fault in gc.verify(place.open())[1].items()]
    for folder in (place.bench, *staging):
        found += _held(folder)
        found += _litter(place, folder)
    return found + _after_gc(place)


def _held(staging: Path) -> list[str]:
    """Locks that somebody still holds."""
    found = []
    for path in sorted((staging / "locks").iterdir()):
        with locked(path, wait=False) as free:
            if not free:
                found.append(f"lock of {path.name} is held")
    return found


def _litter(place: Place, staging: Path) -> list[str]:
    """What lies about after a day: whoever opens the store then sweeps."""
    for path in (staging / "tmp").iterdir():
        os.utime(path, (0, 0))
    ArtefactStore(place.url, staging=staging)
    return [f"{path.name} in tmp" for path in (staging / "tmp").iterdir()]


def _after_gc(place: Place) -> list[str]:
    """What is left of a store of which nothing is needed; leases of the dead protect nothing."""
    collector = place.open()
    if isinstance(place, BucketPlace):
        # Nobody waits here for a lease to end, or for a lost upload to age.
        with patch.object(bucket, "LIFETIME", timedelta(seconds=-1)), patch.object(bucket, "STALE_SECONDS", -1):
            kept = gc.collect(collector, older_than=EVER).in_use
            left = place.objects("data/") + place.objects("manifests/")
            left += [f"copies/{path.name}" for path in (place.bench / "copies").iterdir()]
    else:
        kept = gc.collect(collector, older_than=EVER).in_use
        left = [f"{folder}/{p.name}" for folder in ("final", "tmp") for p in (Path(place.url) / folder).iterdir()]
        left += [f"lease {p.name}" for p in (Path(place.url) / LEASES).iterdir() if not p.name.startswith(".")]
    left += [f"lock of {path.name}" for path in (place.bench / "locks").iterdir()]
    return [f"{artefact.key} is leased by the dead" for artefact in kept] + [f"{name} after gc" for name in left]
