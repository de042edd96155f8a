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
from storage.checkpoints import save_state
from storage.keys import Ref
from tasks.artefacts import EXPORTED_VECTOR, LINEAR_HEAD, linear_head_file, read_vector, vector_file
from tasks.cached_stage import Workspace
from tasks.inputs import open_model

CONFIGURATIONS = (CONFIG, t5_loading.CONFIG, "model.safetensors.index.json")
"""Written anew with a model's weights."""


def export_model(space: Workspace, target: ModelFiles, vector: Ref, alpha: float, folder: Path) -> None:
    """Writes the updated target in the format of its family (open_clip's local-dir, or transformers'), and the task vector
    beside it.
    """
    opened = open_model(target, space.device)
    update = read_vector(vector)
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
    shutil.copyfile(vector_file(vector), folder / EXPORTED_VECTOR)
    if (head := linear_head_file(vector)) is not None:
        shutil.copyfile(head, folder / LINEAR_HEAD)


def _configuration(target: ModelFiles, model: Any) -> dict[str, Any]:
    kept = next((path for path in target.files if path.name == CONFIG), None)
    if kept is not None:
        return json.loads(kept.read_text())
    return {
        "model_cfg": open_clip.get_model_config(target.name),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
