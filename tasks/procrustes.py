"""Solve the alignment maps of one block: the unit that is fanned out on Dask."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from torch import Tensor

from bico.calibration.signals import Signal, signal_key
from bico.linalg.procrustes import RANK_TOLERANCE, Completion, procrustes
from bico.models.sites import Site
from storage.arrays import iterate_arrays, write_arrays
from storage.artefacts import folder_of
from storage.keys import Ref, artefact_key
from tasks.cached_stage import Done, Workspace, as_state
from tasks.names import array_name
from tasks.retries import RETRIES

VERSION = 2


@dataclass(frozen=True)
class SignalMaps:
    """The maps of one signal and completion in one block of a calibrated pair, at every sample count: one artefact."""

    covariances: Ref | None
    """Of labelled samples; None without any."""
    group: str
    """The block's name."""
    signal: Signal
    tensors: tuple[str, ...]
    """The tensors of the block that carry the signal."""
    samples: tuple[int, ...]
    completion: Completion
    pseudo_labelled: tuple[Ref, int] | None = None
    """Covariances of unlabelled inputs and their number, which are added at every sample count."""

    @classmethod
    def of(
        cls,
        covariances: Ref | None,
        signal: Signal,
        sites: Iterable[Site],
        group: str,
        samples: Iterable[int],
        completion: Completion,
        pseudo_labelled: tuple[Ref, int] | None = None,
    ) -> Self:
        tensors = dict.fromkeys(signal_key(site, signal)[0] for site in sites if site.group == group)
        return cls(covariances, group, signal, tuple(tensors), tuple(samples), completion, pseudo_labelled)

    @property
    def key(self) -> str:
        return artefact_key(
            "procrustes",
            VERSION,
            covariances=self.covariances,
            group=self.group,
            signal=self.signal,
            tensors=list(self.tensors),
            samples=list(self.samples),
            completion=self.completion,
            rtol=RANK_TOLERANCE,
            **(
                {}
                if self.pseudo_labelled is None
                else {"pseudo_labelled": self.pseudo_labelled[0], "unlabelled": self.pseudo_labelled[1]}
            ),
        )


@dataclass(frozen=True)
class BlockMaps:
    """All maps of one block: one task. Every signal and completion is an artefact, so another method adds only its own."""

    group: str
    parts: tuple[SignalMaps, ...]

    def is_complete(self, space: Workspace) -> bool:
        return all(space.artefacts.is_complete(part.key) for part in self.parts)


@task(
    name="procrustes",
    task_run_name="procrustes {block.group}",
    tags=["cpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def solve_maps(space: Workspace, block: BlockMaps) -> Done | State[Done]:
    """Stores a block's maps with their spectra and ranks."""
    parts = {part.key: part for part in block.parts}

    def build(folders: dict[str, Path]) -> None:
        for alike in _by_covariances([parts[key] for key in folders]):
            arrays, ranks = {part.key: {} for part in alike}, {part.key: {} for part in alike}
            for name, cross in _covariances(alike[0]):
                for part in alike:
                    solved = procrustes(cross.to(space.device), part.completion)
                    arrays[part.key] |= {f"{name}/map": solved.matrix, f"{name}/spectrum": solved.spectrum}
                    ranks[part.key][name] = solved.rank
            for part in alike:
                write_arrays(folders[part.key] / "maps", arrays[part.key], {"ranks": ranks[part.key]})

    made = space.artefacts.get_or_create_many(parts, build, {"stage": "procrustes", "block": block.group})
    ref, _ = made[block.parts[0].key]
    return as_state(Done("procrustes", ref, all(cached for _, cached in made.values())))


def _by_covariances(parts: Iterable[SignalMaps]) -> list[list[SignalMaps]]:
    """Parts that differ in their completion only share one reading of their covariances."""
    alike: dict[SignalMaps, list[SignalMaps]] = {}
    for part in parts:
        alike.setdefault(replace(part, completion=Completion.PARTIAL), []).append(part)
    return list(alike.values())


def _covariances(part: SignalMaps) -> Iterator[tuple[str, Tensor]]:
    """By name, one in memory at a time. Losses are summed over samples, so those of unlabelled inputs are added."""
    places = [(tensor, samples) for tensor in part.tensors for samples in part.samples]
    names = [array_name(tensor, part.signal, samples) for tensor, samples in places]
    labelled = [name for name, (_, samples) in zip(names, places, strict=True) if samples]
    found = iterate_arrays(folder_of(part.covariances) / "covariances", labelled) if labelled else iter(())
    if part.pseudo_labelled is None:
        yield from found
        return
    ref, count = part.pseudo_labelled
    pseudo_labelled = iterate_arrays(
        folder_of(ref) / "covariances", [array_name(tensor, part.signal, count) for tensor, _ in places]
    )
    for name, (_, samples), (_, total) in zip(names, places, pseudo_labelled, strict=True):
        yield name, total + next(found)[1] if samples else total
