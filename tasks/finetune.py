"""Fine-tune a model on a task, or adopt an expert that somebody else fine-tuned."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from tqdm import tqdm

from bico.finetune import FinetuneConfig, finetune
from bico.models.loading import ModelFiles
from bico.task_vector import StateDict, check_same_architecture
from storage.checkpoints import content_digest, load_state
from storage.keys import artefact_key
from tasks.artefacts import write_expert
from tasks.cached_stage import Done, Workspace, run_stage
from tasks.inputs import TaskRef, open_head, open_model, open_split
from tasks.progress import reported
from tasks.retries import RETRIES

FINETUNE_VERSION = 1
ADOPT_VERSION = 1


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
    key = artefact_key("fine-tune", FINETUNE_VERSION, model=model.digest(), task=task.identity, config=config)

    def build(out: Path) -> None:
        data = open_split(model, space.device, task, "train")
        opened = open_model(model, space.device)
        head = open_head(model, space.device, task)
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
    """Stores an expert from a checkpoint of this model, whole or only what fine-tuning changes."""
    key = artefact_key(
        "adopt-expert", ADOPT_VERSION, model=model.digest(), checkpoint=content_digest(checkpoint, space.allow_pickle)
    )

    def build(out: Path) -> None:
        write_expert(out, read_expert(space, model, checkpoint))

    return run_stage(space, "adopt-expert", key, build, {"model": model.ref, "checkpoint": Path(checkpoint).name})


def read_expert(space: Workspace, model: ModelFiles, checkpoint: str) -> StateDict:
    """Reads a checkpoint and checks that it was fine-tuned from an architecture like this model's.

    Raises:
        CheckpointError: If the file is missing, damaged, not finite, or of another architecture.
    """
    opened = open_model(model, space.device)
    state = opened.state()
    expert = {
        name: tensor.float()
        for name, tensor in load_state(checkpoint, space.allow_pickle).items()
        if name.startswith(opened.prefixes)
    }
    check_same_architecture(expert, state, f"--expert {checkpoint}")
    return expert
