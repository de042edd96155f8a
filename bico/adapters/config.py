"""What an `adapter_config.json` of PEFT says: which modules, at what rank and scale; and what of it is not read.

The rules are those of PEFT 0.21 (`check_target_module_exists`, `get_pattern_key`), so that a module has here the rank and
the scale that it has there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bico.errors import CheckpointError

ALL_LINEAR = "all-linear"
_OTHER_KINDS = {
    "alora_invocation_tokens": "an activated LoRA, which acts on some tokens only",
    "arrow_config": "a router of several adapters",
    "kasa_config": "KaSA, which changes the base's weights too",
    "layer_replication": "a base whose layers were doubled",
    "monteclora_config": "a LoRA that is sampled",
    "target_parameters": "a LoRA of bare parameters, such as fused experts",
    "trainable_token_indices": "single rows of an embedding",
    "use_bdlora": "a block-diagonal LoRA",
    "use_qalora": "a LoRA of pooled inputs",
    "enable_lora": "a LoRA of some parts of a fused module, as PEFT had it until 0.2",
}
"""Settings that make of a LoRA something else, and what."""
_CHANGES_BASE = re.compile("pissa.*|olora|corda|loftq|lora_ga")
"""Beginnings that take a part of the base's weights away: what was trained is the difference to it."""
_TYPES: dict[str, type | tuple[type, ...]] = {
    "bias": str,
    "lora_alpha": (int, float),
    "r": int,
    "use_dora": bool,
    "use_rslora": bool,
}
INNER = ".base_layer.out_proj"
"""How the path of the output map ends in an `nn.MultiheadAttention` that PEFT wraps."""
TWICE = 2.0
"""PEFT up to 0.21 adds the update of that map twice, in training and after it (peft #3774, open): so it is read and written."""
_FEW_BITS = re.compile(r"(?<![a-z])(bnb|nf|fp|int|q|w)[-_]?[48]\b|[48][-_]?bits?\b|gptq|awq", re.IGNORECASE)


def check_config(config: Mapping[str, Any], place: str) -> None:
    """Raises CheckpointError if a configuration is not of a LoRA that is read here: names what it is."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{place} is an adapter of type {kind or 'unknown'}: LoRA is read alone; turn it into one (PEFT's "
            "`convert_to_lora`), or merge it into its base and give that."
        )
    for key, means in _OTHER_KINDS.items():
        if config.get(key):
            raise CheckpointError(f"{place} is {means} ({key}): it is not read; train a plain LoRA, or merge it.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and _CHANGES_BASE.fullmatch(start.lower()):
        raise CheckpointError(
            f"{place} was begun by {start}, which takes a part of the base's weights away, so that it is no update of the base "
            "itself: save it again as a plain LoRA (`save_pretrained(..., path_initial_model_for_weight_conversion=...)`)."
        )
    for key, types in _TYPES.items():
        if key in config and (not isinstance(config[key], types) or (key == "r" and config[key] < 1)):
            raise CheckpointError(f"{place}: {key} is {config[key]!r} in its configuration: fetch or save it again.")
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise CheckpointError(f"{place}: bias is {config['bias']!r}, where PEFT has none, all or lora_only.")


def rank_of(config: Mapping[str, Any], path: str) -> int:
    """The rank of a module, by `rank_pattern` or `r`."""
    return _by_pattern(config.get("rank_pattern") or {}, outer(path), config.get("r", 8))


def alpha_of(config: Mapping[str, Any], path: str) -> float:
    """The α of a module, by `alpha_pattern` or `lora_alpha`; of a map inside a wrapped attention twice the attention's."""
    alpha = _by_pattern(config.get("alpha_pattern") or {}, outer(path), config.get("lora_alpha", 8))
    return TWICE * alpha if path.endswith(INNER) else float(alpha)


def outer(path: str) -> str:
    """The module that PEFT wraps: what lies inside an attention has its settings."""
    return path.partition(".base_layer.")[0]


def _by_pattern(patterns: Mapping[str, Any], path: str, usual: Any) -> Any:
    """The first pattern that matches the end of a path, from a dot on, counts."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), usual)


def targets(config: Mapping[str, Any], path: str) -> bool | None:
    """Whether a configuration asks for a LoRA of a module; None if that takes more than its name (`all-linear`, nothing).

    Arguments:
        path: Of the module, as the adapter's own base calls it.
    """
    excluded = config.get("exclude_modules")
    if excluded and (re.fullmatch(excluded, path) if isinstance(excluded, str) else ends_in(path, excluded)):
        return False
    if any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in config.get("modules_to_save") or ()):
        return False
    asked = config.get("target_modules")
    if asked is None or (isinstance(asked, str) and asked.lower() == ALL_LINEAR):
        return None
    if isinstance(asked, str):
        return re.fullmatch(asked, path) is not None
    if path in asked:
        return True
    layers = config.get("layers_to_transform")
    if not ends_in(path, asked) or layers is None or layers == []:
        return ends_in(path, asked)
    index = _layer(path, config.get("layers_pattern") or ())
    return index is not None and index in ([layers] if isinstance(layers, int) else layers)


def ends_in(path: str, names: Iterable[str]) -> bool:
    """Whether a path is one of these names, or ends in one from a dot on.

    Example:
        >>> ends_in("layers.0.q_proj", ["q_proj"]), ends_in("layers.0.q_proj", ["proj"])
        (True, False)
    """
    return any(path == name or path.endswith(f".{name}") for name in names)


def _layer(path: str, patterns: str | Sequence[str]) -> int | None:
    """The number of a module's layer: the first in its path, behind one of the patterns where there are such."""
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", path)
    else:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        tried = (re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", path) for pattern in patterns)
        found = next((match for match in tried if match), None)
    return None if found is None else int(found["idx"])


def quantised_base(config: Mapping[str, Any]) -> str | None:
    """The name of an adapter's base, if it says that it is one of few bits; None if it does not."""
    name = config.get("base_model_name_or_path") or ""
    return name if config.get("loftq_config") or _FEW_BITS.search(name) else None
