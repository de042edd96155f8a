"""Solve the alignment maps of one block: the unit that is fanned out on Dask."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.procrustes import RANK_TOLERANCE, AlignmentMap, Completion, procrustes
from bico.signals import Signal, SignalKey
from storage.arrays import read_arrays, read_attrs, write_arrays
from storage.keys import Ref, artefact_key
from tasks.collect import array_name
from tasks.stage import Done, Workspace, run_stage

VERSION = 1


@dataclass(frozen=True)
class MapJob:
    """One signal of one block of one calibrated pair."""

    covariances: Ref
    group: str
    """The block's name."""
    signal: Signal
    tensors: tuple[str, ...]
    """The tensors of the block that carry the signal."""
    samples: tuple[int, ...]
    completion: Completion

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
        )


@task(name="procrustes", task_run_name="procrustes-{job.group}-{job.signal}", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False)
def solve_maps(space: Workspace, job: MapJob) -> Done | State[Done]:
    """Stores the maps of one block and signal at every sample count, with their spectra and ranks."""

    def build(out: Path) -> None:
        arrays, ranks = {}, {}
        for tensor in job.tensors:
            for samples in job.samples:
                name = array_name(tensor, job.signal, samples)
                cross = read_arrays(job.covariances.path / "covariances", [name])[name]
                solved = procrustes(cross, job.completion)
                arrays[f"{name}/map"], arrays[f"{name}/spectrum"] = solved.matrix, solved.spectrum
                ranks[name] = solved.rank
        write_arrays(out / "maps", arrays, {"ranks": ranks})

    return run_stage(space, "procrustes", job.key, build, {"group": job.group, "signal": job.signal})


class StoredMaps:
    """The maps of a calibrated pair at one sample count, read when a method asks for them."""

    def __init__(self, jobs: list[MapJob], store: Workspace, samples: int) -> None:
        self._places = {
            (tensor, job.signal): store.artefacts.ref(job.key).path / "maps" for job in jobs for tensor in job.tensors
        }
        self._samples = samples

    def __call__(self, key: SignalKey) -> AlignmentMap:
        path, name = self._places[key], array_name(*key, self._samples)
        arrays = read_arrays(path, [f"{name}/map", f"{name}/spectrum"])
        return AlignmentMap(arrays[f"{name}/map"], read_attrs(path)["ranks"][name], arrays[f"{name}/spectrum"])
