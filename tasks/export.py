"""Write a transferred model as a folder that its family's own library loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip

from bico.models import t5_loading
from bico.models.files import T5
from bico.models.loading import CONFIG, WEIGHTS, ModelFiles
from bico.task_vector import add
from storage.artefacts import folder_of
from storage.checkpoints import load_state, save_state
from tasks.cached_stage import Done, Workspace
from tasks.inputs import open_model
from tasks.last_steps import LINEAR_HEAD
from tasks.transfer import VECTOR

CONFIGURATIONS = (CONFIG, t5_loading.CONFIG, "model.safetensors.index.json")
"""Written anew with a model's weights."""


def export_model(space: Workspace, target: ModelFiles, vector: Done, alpha: float, folder: Path) -> None:
    """Writes the updated target in the format of its family (open_clip's local-dir, or transformers'), and the task vector
    beside it.
    """
    opened = open_model(target, space.device)
    update = load_state(folder_of(vector.ref) / VECTOR)
    folder.mkdir(parents=True, exist_ok=True)
    for path in target.files:
        if path.name not in CONFIGURATIONS and path != target.weights and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)  # the tokenizer
    if target.family == T5:
        with opened.updated(update, alpha):
            t5_loading.save_t5(opened, folder)
    else:
        model = opened.model
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        (folder / CONFIG).write_text(json.dumps(_configuration(target, model), indent=2))
        save_state(folder / WEIGHTS, add(state, update, alpha))
    shutil.copyfile(folder_of(vector.ref) / VECTOR, folder / VECTOR.replace("task_vector", "task-vector"))
    if (folder_of(vector.ref) / LINEAR_HEAD).exists():
        shutil.copyfile(folder_of(vector.ref) / LINEAR_HEAD, folder / LINEAR_HEAD)


def _configuration(target: ModelFiles, model: Any) -> dict[str, Any]:
    kept = next((path for path in target.files if path.name == CONFIG), None)
    if kept is not None:
        return json.loads(kept.read_text())
    return {
        "model_cfg": open_clip.get_model_config(target.name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
