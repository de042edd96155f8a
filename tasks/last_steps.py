"""Take the last steps: from a transferred task vector to a better one, or to a classifier, on the same samples."""

from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State

from bico.calibration.covariances import Batch
from bico.evaluation.linear_head import LinearHead
from bico.last_steps import LastStep, Samples, StepContext
from bico.methods.variant import finish
from bico.models.loading import ModelFiles
from bico.task_vector import StateDict, scale
from storage.artefacts import folder_of
from storage.checkpoints import load_state, save_state
from storage.keys import artefact_key
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.collect import Calibration
from tasks.finetune import task_vector_of
from tasks.inputs import open_head, open_model, open_split
from tasks.pseudo_labelled import PseudoLabelled
from tasks.retries import RETRIES
from tasks.transfer import VECTOR, EvidenceRefs, StoredEvidence

VERSION = 1
LINEAR_HEAD = "linear_head.safetensors"


@task(name="last-steps", tags=["gpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def take_last_steps(
    space: Workspace,
    models: tuple[ModelFiles, ModelFiles],
    expert: Done,
    vector: Done | None,
    alpha: float,
    steps: tuple[LastStep, ...],
    evidence: EvidenceRefs,
    calibrations: tuple[Calibration | None, PseudoLabelled | None],
) -> Done | State[Done]:
    """Stores the target's task vector after the steps, at full strength, and the classifier that they may end in.

    Arguments:
        models: Source and target.
        vector: The transferred task vector; None without transport.
        alpha: How much of it is added before the steps.
        evidence: What the steps need beside the samples, and how many of the labelled ones serve.
        calibrations: Labelled and unlabelled inputs, where there are some.
    """
    source, target = models
    labelled, unlabelled = calibrations
    known = [] if labelled is None else labelled.indices[: evidence.samples]
    task = (labelled or unlabelled).task
    key = artefact_key(
        "last-steps",
        VERSION,
        source=source.digest(),
        target=target.digest(),
        expert=expert.ref,
        vector=None if vector is None else vector.ref,
        alpha=alpha,
        steps=[repr(step) for step in steps],  # with all settings; penalties may be infinite, which keys may not
        maps=sorted(part.key for part in evidence.maps),
        count=evidence.count,
        task=task.identity,
        labelled=known,
        head=None if (found := (labelled or unlabelled).head_indices) is None else list(found),
        unlabelled=None if unlabelled is None else {"indices": unlabelled.indices, **unlabelled.beside},
    )

    def build(out: Path) -> None:
        ours, theirs = (open_model(files, space.device) for files in models)
        fitted = (labelled or unlabelled).head_indices
        heads = tuple(open_head(files, space.device, task, fitted) for files in models)
        samples = Samples(
            _batches(space, models, labelled, known) if known else (),
            [] if unlabelled is None else _batches(space, models, unlabelled, unlabelled.indices),
        )
        context = StepContext(ours, theirs, heads, task_vector_of(expert.ref, ours.state()), samples)
        outcome = finish(steps, _start(vector, alpha, theirs.state()), context, StoredEvidence(space, evidence))
        save_state(out / VECTOR, outcome.vector or _nothing(theirs.state()))
        if outcome.linear_head is not None:
            save_state(out / LINEAR_HEAD, {"weight": outcome.linear_head.weight, "bias": outcome.linear_head.bias})

    about = {"steps": [step.name for step in steps], "samples": evidence.count, "unlabelled": evidence.unlabelled}
    return run_stage(space, "last-steps", key, build, about)


def read_linear_head(weights: Done | None) -> LinearHead | None:
    """Reads the classifier that a stage has left, if it has left one."""
    if weights is None or not (file := folder_of(weights.ref) / LINEAR_HEAD).exists():
        return None
    return LinearHead(**load_state(file))


def _nothing(state: StateDict) -> StateDict:
    """A task vector that changes nothing: a safetensors file has to hold a tensor."""
    name = list(state)[-1]
    return {name: torch.zeros_like(state[name])}


def _start(vector: Done | None, alpha: float, state: StateDict) -> StateDict:
    if vector is None:
        return {}
    loaded = load_state(folder_of(vector.ref) / VECTOR)
    return scale({name: tensor.to(state[name].device) for name, tensor in loaded.items()}, alpha)


def _batches(
    space: Workspace, models: tuple[ModelFiles, ModelFiles], calibration: Calibration, indices: list[int]
) -> list[Batch]:
    ours, theirs = (open_split(files, space.device, calibration.task, "train") for files in models)
    pseudo_labelled, chosen = calibration.targets(space), torch.tensor(indices)
    batches = []
    for places in torch.arange(len(chosen)).split(calibration.batch_size):
        inputs, labels = ours.batch(chosen[places])
        batches.append(
            Batch(
                inputs, theirs.batch(chosen[places])[0], labels if pseudo_labelled is None else pseudo_labelled[places]
            )
        )
    return batches
