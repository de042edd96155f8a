"""Take the last steps: from a transferred task vector to a better one, or to a classifier, on the same samples."""

from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.calibration.covariances import Batch
from bico.errors import CalibrationError
from bico.last_steps import LastStep, Samples, StepContext
from bico.methods.variant import finish
from bico.models.loading import ModelFiles
from bico.task_vector import scale
from storage.keys import Ref, artefact_key
from tasks.artefacts import read_task_vector, read_vector, write_vector
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.calibration import Calibration
from tasks.evidence import EvidenceRefs, StoredEvidence
from tasks.inputs import open_head, open_model, open_split
from tasks.retries import RETRIES

VERSION = 1


def last_steps_key(
    space: Workspace,
    models: tuple[ModelFiles, ModelFiles],
    expert: Ref,
    vector: Ref | None,
    alpha: float,
    steps: tuple[LastStep, ...],
    evidence: EvidenceRefs,
    calibrations: tuple[Calibration | None, Calibration | None],
) -> str:
    """Raises CalibrationError without any samples to learn from."""
    source, target = models
    labelled, unlabelled = calibrations
    either = labelled or unlabelled
    if either is None:
        raise CalibrationError("Last steps learn from samples, and there are none: raise --samples or --unlabelled.")
    return artefact_key(
        "last-steps",
        VERSION,
        source=source.digest(),
        target=target.digest(),
        expert=expert,
        vector=vector,
        alpha=alpha,
        steps=[repr(step) for step in steps],  # with all settings; penalties may be infinite, which keys may not
        maps=sorted(part.key for part in evidence.maps),
        count=evidence.budget.asked,
        task=either.task.identity,
        labelled=known_indices(labelled, evidence),
        head=None if (found := either.head_indices) is None else list(found),
        unlabelled=None if unlabelled is None else unlabelled.identity,
    )


def known_indices(labelled: Calibration | None, evidence: EvidenceRefs) -> list[int]:
    """The labelled samples that the steps may look at."""
    return [] if labelled is None else labelled.indices[: evidence.budget.size]


@task(name="last-steps", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def take_last_steps(
    space: Workspace,
    models: tuple[ModelFiles, ModelFiles],
    expert: Ref,
    vector: Ref | None,
    alpha: float,
    steps: tuple[LastStep, ...],
    evidence: EvidenceRefs,
    calibrations: tuple[Calibration | None, Calibration | None],
) -> Done | State[Done]:
    """Stores the target's task vector after the steps, at full strength, and the classifier that they may end in.

    Arguments:
        models: Source and target.
        vector: The transferred task vector; None without transport.
        alpha: How much of it is added before the steps.
        evidence: What the steps need beside the samples, and how many of the labelled ones serve.
        calibrations: Labelled and unlabelled inputs, where there are some.
    """
    key = last_steps_key(space, models, expert, vector, alpha, steps, evidence, calibrations)
    labelled, unlabelled = calibrations
    known = known_indices(labelled, evidence)

    def build(out: Path) -> None:
        either = labelled or unlabelled
        assert either is not None  # the key has told
        ours, theirs = (open_model(files, space.device) for files in models)
        head, their_head = (open_head(files, space.device, either.task, either.head_indices) for files in models)
        samples = Samples(
            () if labelled is None or not known else _batches(space, models, labelled, known),
            [] if unlabelled is None else _batches(space, models, unlabelled, unlabelled.indices),
        )
        context = StepContext(ours, theirs, (head, their_head), read_task_vector(expert, ours.state()), samples)
        start = {} if vector is None else scale(read_vector(vector, space.device), alpha)
        result = finish(steps, start, context, StoredEvidence(space, evidence))
        write_vector(out, result.vector, theirs.state(), result.linear_head, result.curve)

    about = {"steps": [step.name for step in steps], "samples": evidence.budget.asked}
    return run_stage(space, "last-steps", key, build, about | {"unlabelled": evidence.budget.unlabelled})


def _batches(
    space: Workspace, models: tuple[ModelFiles, ModelFiles], calibration: Calibration, indices: list[int]
) -> list[Batch]:
    ours, theirs = (open_split(files, space.device, calibration.task, "train") for files in models)
    targets, chosen = calibration.targets(space), torch.tensor(indices)
    batches = []
    for places in torch.arange(len(chosen)).split(calibration.batch_size):
        inputs, labels = ours.batch(chosen[places])
        batches.append(Batch(inputs, theirs.batch(chosen[places])[0], labels if targets is None else targets[places]))
    return batches
