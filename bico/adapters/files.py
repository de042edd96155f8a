"""LoRA adapters as PEFT keeps them: a folder with `adapter_config.json` beside `adapter_model.safetensors`."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bico.adapters.adapter import Adapter
from bico.adapters.config import INNER, alpha_of, check_config, outer, quantised_base, rank_of, targets
from bico.adapters.factors import LowRank
from bico.adapters.folder import CONFIG, WEIGHTS, check_files, read_config, weights_in
from bico.adapters.written import config_for
from bico.errors import CheckpointError, OutputError, one_line
from bico.models.checkpoints import check_floats, read_safetensors

PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<path>.+?)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<name>(?!weight$|bias$).+?))?(?:\.(?P<end>weight|bias))?"
)
_SAVED = re.compile(r"(?P<path>.+)\.modules_to_save\.(?P<name>[^.]+)\.(?P<end>.+)")


def read_adapter(place: str | Path) -> Adapter:
    """Reads an adapter, in the dtypes that it is kept in.

    Raises:
        CheckpointError: If files are missing, damaged or pickles; it is no LoRA, or one of a kind that is not read; its
            tensors are not what its configuration says, not whole, or not finite.
    """
    folder = check_files(place)
    config, tensors = read_config(folder), read_tensors(folder)
    return adapter_of(tensors, config, str(place))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter's folder, by their names there; raises CheckpointError like `read_adapter`."""
    tensors: dict[str, Tensor] = {}
    for path in weights_in(folder):
        tensors |= read_safetensors(path)
    return tensors


def adapter_of(tensors: Mapping[str, Tensor], config: Mapping[str, Any], place: str) -> Adapter:
    """Puts an adapter together of its tensors; arguments and errors are those of `read_adapter`."""
    check_config(config, place)
    check_floats(tensors, place)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{place} holds NaN or infinite values in {name}: the file or its training is broken."
            )
    parts, whole = _sorted(tensors, config, place)
    modules: dict[str, Any] = {}
    embeddings: dict[str, Any] = {}
    magnitudes: dict[str, Tensor] = {}
    for path, kinds in parts.items():
        if "lora_magnitude_vector" in kinds:
            magnitudes[path] = kinds.pop("lora_magnitude_vector")
        lead = "lora_embedding_" if any(kind.startswith("lora_embedding_") for kind in kinds) else "lora_"
        update = _low_rank(path, kinds, lead, config, place)
        (modules if lead == "lora_" else embeddings)[path] = update
    if not modules and not embeddings:
        raise CheckpointError(
            f"{place} holds no LoRA: its {len(tensors)} tensors are {', '.join(list(tensors)[:3])}, …"
        )
    _check_dora(config, modules, magnitudes, place)
    _check_targeted(config, [*modules, *embeddings], place)
    notes = []
    if base := quantised_base(config):
        notes.append(
            f"{place} was trained on a base of few bits ({base}): what it makes up for of the rounding there is no update of the "
            "base in full precision."
        )
    if inner := [path for path in modules if path.endswith(INNER)]:
        notes.append(
            f"{place}: PEFT up to 0.21 adds the LoRA of {inner[0].replace('.base_layer', '')} twice (peft #3774): it is counted twice here too."
        )
    return Adapter(place, modules, dict(config), embeddings, magnitudes, whole, tuple(notes))


def _sorted(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], place: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of each module by kind, and those that are kept whole."""
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    whole: dict[str, Tensor] = {}
    names = set()
    for key, tensor in tensors.items():
        own = key.removeprefix(PREFIX)
        if "trainable_tokens_delta" in own:
            raise CheckpointError(f"{place} holds single rows of an embedding ({key}): they are not read.")
        if found := _KEY.fullmatch(own):
            kind = found["kind"] + (".bias" if found["end"] == "bias" else "")
            if kind in parts[found["path"]]:
                raise CheckpointError(
                    f"{place} holds {found['kind']} of {found['path']} more than once: give one adapter."
                )
            parts[found["path"]][kind] = tensor
            names.add(found["name"])
        elif saved := _SAVED.fullmatch(own):
            whole[f"{saved['path']}.{saved['end']}"] = tensor
            names.add(saved["name"])
        elif ".original_module." not in own:
            whole[own.replace(".base_layer.", ".")] = tensor
    if len(names) > 1:
        raise CheckpointError(
            f"{place} holds several adapters ({', '.join(sorted(str(name) for name in names))}): save one at a time "
            "(`save_pretrained(folder, selected_adapters=[...])`)."
        )
    return parts, whole


def _low_rank(path: str, kinds: Mapping[str, Tensor], lead: str, config: Mapping[str, Any], place: str) -> LowRank:
    """One module's update, if its tensors belong together and are what the configuration says."""
    for kind in (f"{lead}A", f"{lead}B"):
        if kind not in kinds:
            raise CheckpointError(f"{place} holds no {kind} of {path}, whose other half it holds: the file is cut.")
        if kinds[kind].ndim != 2 or 0 in kinds[kind].shape:
            raise CheckpointError(
                f"{place}: {kind} of {path} is {tuple(kinds[kind].shape)}, where a linear map's has two axes: a convolution, an "
                "old LoRA of a fused map, or a shard that was saved without gathering the others (ZeRO-3, FSDP)."
            )
    if odd := kinds.keys() - {f"{lead}A", f"{lead}B", "lora_B.bias"}:
        raise CheckpointError(f"{place}: {path} has {', '.join(sorted(odd))} too, which has no meaning here.")
    down, up = kinds[f"{lead}A"], kinds[f"{lead}B"]
    wrapped = path.partition(".base_layer.")[
        0
    ]  # what lies inside a wrapped attention has the settings of the attention
    asked = rank_of(config, wrapped)
    if not down.shape[0] == up.shape[1] == asked:
        raise CheckpointError(
            f"{place}: {path} has rank {down.shape[0]} and {up.shape[1]} in the file and {asked} in {CONFIG} (r and rank_pattern), so "
            "that its scale is not known: fetch or save the adapter again."
        )
    bias = kinds.get("lora_B.bias")
    return LowRank(down, up, alpha_of(config, path), bool(config.get("use_rslora")), bias)


def _check_dora(
    config: Mapping[str, Any], modules: Mapping[str, LowRank], magnitudes: Mapping[str, Tensor], place: str
) -> None:
    """Raises CheckpointError unless all modules have a magnitude of their size, or none has and none should."""
    lacking = [path for path in modules if path not in magnitudes] if config.get("use_dora") or magnitudes else []
    if lacking or (magnitudes and not config.get("use_dora")):
        what = f"{lacking[0]} has none" if lacking else "its configuration does not say use_dora"
        raise CheckpointError(
            f"{place} holds the magnitudes of DoRA for {len(magnitudes)} of {len(modules)} modules, and {what}: without them "
            "its weights are others; fetch or save it again."
        )
    for path, magnitude in magnitudes.items():
        if magnitude.numel() != modules[path].shape[0]:
            raise CheckpointError(
                f"{place}: {path} has {magnitude.numel()} magnitudes for {modules[path].shape[0]} outputs."
            )


def _check_targeted(config: Mapping[str, Any], paths: Iterable[str], place: str) -> None:
    """PEFT makes a LoRA where the configuration asks for one, and does not read what the file holds elsewhere."""
    for path in paths:
        if targets(config, outer(path)) is False:
            raise CheckpointError(
                f"{place} holds a LoRA of {path}, which its {CONFIG} does not ask for (target_modules, exclude_modules, "
                "layers_to_transform, modules_to_save), so that PEFT would leave it out: save it again."
            )


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """Returns an adapter's tensors by PEFT's names."""
    tensors: dict[str, Tensor] = {}
    with_bias = any(update.bias is not None for update in adapter.modules.values())
    for path, update in adapter.modules.items():
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = update.down, update.up
        if with_bias:
            tensors[f"{path}.lora_B.bias"] = (
                update.up.new_zeros(update.shape[0]) if update.bias is None else update.bias
            )
    for path, update in adapter.embeddings.items():
        tensors[f"{path}.lora_embedding_A"], tensors[f"{path}.lora_embedding_B"] = update.down, update.up
    for path, magnitude in adapter.magnitudes.items():
        tensors[f"{path}.lora_magnitude_vector"] = magnitude
    wrapped = {path.replace(".base_layer.", "."): path for path in adapter.updates}
    for name, tensor in adapter.whole.items():
        path, _, end = name.rpartition(".")
        tensors[f"{wrapped[path]}.base_layer.{end}" if path in wrapped else name] = tensor
    return {PREFIX + name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}


def write_adapter(adapter: Adapter, folder: Path, paths: Collection[str], card: str = "") -> Path:
    """Writes an adapter, so that `PeftModel.from_pretrained(base, folder)` computes what its factors say.

    Arguments:
        paths: All modules of its base: the names in the configuration are chosen so that they mean no other one.
        card: What its README.md says.

    Raises:
        OutputError: If the folder cannot be written, or holds another adapter.
        CheckpointError: If it holds what PEFT's configuration cannot say.
    """
    if adapter.embeddings and any(update.bias is not None for update in adapter.modules.values()):
        raise CheckpointError(f"{adapter.place}: PEFT knows no biases of LoRA beside a LoRA of an embedding.")
    config = config_for(adapter.modules, adapter.embeddings, adapter.config, paths)
    if adapter.magnitudes:
        config["use_dora"] = True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
            raise OutputError(f"{folder} holds an adapter already: name another folder, or remove it.")
        save_file(tensors_of(adapter), folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if card:
            (folder / "README.md").write_text(card)
    except OSError as error:
        raise OutputError(f"Cannot write the adapter to {folder} ({one_line(error)}).") from error
    return folder


def in_dtype(adapter: Adapter, dtype: torch.dtype) -> Adapter:
    """Returns an adapter with its factors in another dtype."""
    return replace(
        adapter,
        modules={path: update.to(dtype) for path, update in adapter.modules.items()},
        embeddings={path: update.to(dtype) for path, update in adapter.embeddings.items()},
    )
