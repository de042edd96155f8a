"""Put carried task vectors of one target together, and find the strength of each on the samples that calibrated it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.evaluation.probe import probe_losses
from bico.models.loading import ModelFiles
from bico.task_vector import StateDict
from bico.task_vector.merging import STRENGTHS, Merging, largest, merged, search_strengths
from storage.artefacts import folder_of
from storage.checkpoints import load_state
from storage.keys import Ref, artefact_key
from tasks.artefacts import write_vector
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_head, open_model, open_split, read_features
from tasks.retries import RETRIES

VERSION = 1
_STRENGTHS = "strengths.json"


@dataclass(frozen=True)
class VectorFile:
    """A task vector that a transfer has written."""

    path: str
    digest: str
    """sha256 of the file."""


@dataclass(frozen=True)
class Samples:
    """Of one task, the training samples that judge strengths."""

    task: TaskRef
    rows: tuple[int, ...]


def merge_key(
    space: Workspace,
    target: ModelFiles,
    vectors: Sequence[VectorFile],
    strengths: Sequence[float],
    how: Merging,
    density: float,
) -> str:
    about = [vector.digest for vector in vectors]
    return artefact_key(
        "merge",
        VERSION,
        target=target.digest(),
        vectors=about,
        strengths=list(strengths),
        how=how,
        **({"density": density} if how is Merging.TIES else {}),
    )


@task(name="merge", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def merge_vectors(
    space: Workspace,
    target: ModelFiles,
    vectors: Sequence[VectorFile],
    strengths: Sequence[float],
    how: Merging,
    density: float,
) -> Done | State[Done]:
    """Stores one task vector of several."""
    key = merge_key(space, target, vectors, strengths, how, density)

    def build(out: Path) -> None:
        made = merged([load_state(Path(one.path)) for one in vectors], strengths, how, density)
        write_vector(out, made, open_model(target, space.device).state())

    return run_stage(space, "merge", key, build, {"how": how, "strengths": list(strengths)})


def strengths_key(
    space: Workspace,
    target: ModelFiles,
    vectors: Sequence[VectorFile],
    judges: Sequence[Samples],
    how: Merging,
    density: float,
) -> str:
    return artefact_key(
        "merge-strengths",
        VERSION,
        target=target.digest(),
        vectors=[one.digest for one in vectors],
        judges=[{"task": one.task.identity, "rows": list(one.rows)} for one in judges],
        how=how,
        density=density,
        candidates=list(STRENGTHS),
    )


@task(name="merge-strengths", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def choose_strengths(
    space: Workspace,
    target: ModelFiles,
    vectors: Sequence[VectorFile],
    judges: Sequence[Samples],
    how: Merging,
    density: float,
) -> Done | State[Done]:
    """Stores a strength for each vector: those with which the merged model's cross-entropy, in shares of the target's as it
    is and averaged over tasks, is least on the samples that judge.
    """
    key = strengths_key(space, target, vectors, judges, how, density)

    def build(out: Path) -> None:
        given = [load_state(Path(one.path)) for one in vectors]
        if how is Merging.TIES:  # what is cut does not depend on strengths
            given = [largest(vector, density) for vector in given]
        start = [_loss(space, target, {}, one) for one in judges]
        tried: list[tuple[list[float], float]] = []

        def loss(strengths: tuple[float, ...]) -> float:
            made = merged(given, strengths, how, density=1.0)
            found = [
                _loss(space, target, made, one) / max(first, _TINY) for one, first in zip(judges, start, strict=True)
            ]
            tried.append((list(strengths), math.fsum(found) / len(found)))
            return tried[-1][1]

        chosen = search_strengths(loss, len(given))
        (out / _STRENGTHS).write_text(json.dumps({"chosen": chosen, "tried": tried}), encoding="utf-8")

    return run_stage(space, "merge-strengths", key, build, {"how": how, "tasks": [one.task.name for one in judges]})


_TINY = 1e-6
"""Nats; a target that is as good as this already has nothing to gain, and nothing is divided by zero."""


def read_strengths(ref: Ref) -> tuple[float, ...]:
    return tuple(json.loads((folder_of(ref) / _STRENGTHS).read_text(encoding="utf-8"))["chosen"])


@torch.no_grad()
def _loss(space: Workspace, target: ModelFiles, vector: StateDict, samples: Samples) -> float:
    """Mean cross-entropy in nats: by the task's head, or by probes that were fitted on the other samples."""
    opened, data = open_model(target, space.device), open_split(target, space.device, samples.task, "train")
    head = None if opened.probed else open_head(target, space.device, samples.task)
    with opened.updated(vector):
        if head is None:
            features, labels = read_features(opened, data, samples.rows)
            return float(probe_losses(features, labels, len(samples.task.open().class_names)).mean())
        batches = (data.batch(part) for part in torch.tensor(samples.rows).split(250))
        losses = [
            F.cross_entropy(
                (scores := opened.logits(inputs, head)).double(), labels.to(scores.device), reduction="none"
            )
            for inputs, labels in batches
        ]
        return float(torch.cat(losses).mean())
