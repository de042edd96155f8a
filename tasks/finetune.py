"""Fine-tune a model on a task, or adopt an expert that somebody else fine-tuned."""

import math
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from tqdm import tqdm

from bico.adapters.carry import find_in
from bico.adapters.expert import check_near, content_of, read_weights
from bico.adapters.folder import check_files
from bico.finetune import FinetuneConfig, finetune
from bico.models.experts import Expert, everything, expert_of
from bico.models.families import foreign_namings
from bico.models.loading import ModelFiles
from bico.models.protocol import PAIRS, Blockwise
from bico.task_vector import StateDict, norm
from storage.checkpoints import digest_of
from storage.keys import Ref, artefact_key
from tasks.artefacts import read_task_vector, write_as_adapter, write_expert
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tasks.progress import reported
from tasks.retries import RETRIES

FINETUNE_VERSION = 1
ADOPT_VERSION = 1


def finetune_key(
    space: Workspace, model: ModelFiles, task: TaskRef, config: FinetuneConfig, progress: bool = False
) -> str:
    return artefact_key("fine-tune", FINETUNE_VERSION, model=model.digest(), task=task.identity, config=config)


def adopt_key(space: Workspace, model: ModelFiles, checkpoint: str) -> str:
    content = digest_of(content_of(checkpoint, space.allow_pickle))
    kept = {"as": "adapter"} if model.blockwise else {}
    return artefact_key("adopt-expert", ADOPT_VERSION, model=model.digest(), checkpoint=content, **kept)


@task(
    name="fine-tune",
    task_run_name="fine-tune {model.ref} {task.name}",
    tags=["gpu"],
    cache_policy=NO_CACHE,
    persist_result=False,
    **RETRIES,
)
def finetune_model(
    space: Workspace, model: ModelFiles, task: TaskRef, config: FinetuneConfig, progress: bool = False
) -> Done | State[Done]:
    """Stores the parameters that fine-tuning changes: the fine-tuned image tower, or text encoder."""
    key = finetune_key(space, model, task, config)

    def build(out: Path) -> None:
        data = open_split(model, space.device, task, "train")
        opened = open_model(model, space.device)
        # Pairs are told from those of their own batch, which is part of the configuration.
        head = None if task.loss == PAIRS else open_head(model, space.device, task)
        bar = tqdm(total=config.steps, desc="fine-tune", disable=not progress, leave=False)
        with bar, reported("fine-tune", f"steps of {model.ref} on {task.name}", config.steps) as advance:

            def tell(step: int, _state: StateDict, loss: float) -> None:
                advance(step)
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()

            tuned = finetune(opened, data.batch, len(data), head, config, on_step=tell)
        write_expert(out, tuned)

    return run_stage(space, "fine-tune", key, build, {"model": model.ref, "task": task.name})


@task(name="adopt-expert", tags=["cpu"], cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def adopt_expert(space: Workspace, model: ModelFiles, checkpoint: str) -> Done | State[Done]:
    """Stores an expert from a checkpoint of this model, whole or only what fine-tuning changes; of a model that is read block by
    block the adapter that it is.

    That it can be one is for a plan to check, which knows how far it may be.
    """
    key = adopt_key(space, model, checkpoint)

    def build(out: Path) -> None:
        if model.blockwise:
            write_as_adapter(out, check_files(checkpoint))
        else:
            write_expert(out, read_expert(space, model, checkpoint).state)

    return run_stage(space, "adopt-expert", key, build, {"model": model.ref, "checkpoint": Path(checkpoint).name})


def read_expert(space: Workspace, model: ModelFiles, checkpoint: str, farthest: float | None = None) -> Expert:
    """Reads a checkpoint, or an adapter, as an expert of a model.

    Arguments:
        farthest: Refuse what was not fine-tuned from the model, such as a change of more than so many of its norms; None to
            say so only.

    Raises:
        CheckpointError: If files are missing or damaged, or it cannot be an expert of this model (`bico.models.experts`).
    """
    opened = open_model(model, space.device)
    if isinstance(opened, Blockwise):
        found = find_in(checkpoint, opened, model.family)
        change = check_near(found, opened, math.inf if farthest is None else farthest)
        count = len(found.adapter.updates)
        said = f"{checkpoint}: a LoRA adapter of {count} modules, which changes a block by {change:.2g} times its weights' norm."
        return Expert({}, (*found.adapter.notes, *found.notes, said))
    read = read_weights(checkpoint, opened, model.family, space.allow_pickle)
    foreign = foreign_namings(model.family, everything(opened))
    return expert_of(opened, read, foreign, f"--expert {checkpoint}", farthest)


def relative_change(space: Workspace, model: ModelFiles, expert: Ref) -> float:
    """By how much a stored expert differs from its model, in norms of the model's parameters that are carried."""
    state = open_model(model, space.device).state()
    return norm(read_task_vector(expert, state)) / norm(state)
