"""The `adapter_config.json` of an adapter that is written: every module at its rank and scale, and no other module."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from bico.adapters.config import ends_in, outer
from bico.adapters.factors import LowRank

_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Tasks for which PEFT asks for a head of the model that it wraps."""


def config_for(
    modules: Mapping[str, LowRank], embeddings: Mapping[str, LowRank], like: Mapping[str, Any], paths: Collection[str]
) -> dict[str, Any]:
    """Returns a configuration that gives every module its rank and scale, and no other module a LoRA.

    Arguments:
        modules: Updates by module path.
        embeddings: Those of embeddings.
        like: A configuration whose dropout, biases and task it keeps.
        paths: All modules of the base, so that short names can be told from those that mean too much.
    """
    updates = {**modules, **embeddings}
    rslora = all(update.rslora for update in updates.values())
    own = {path: update for path, update in updates.items() if path == outer(path)}
    ranks = {path: update.rank for path, update in own.items()}
    # alpha / √r is (alpha · √r) / r
    alphas = {path: _plain(u.alpha if u.rslora == rslora else u.scale * u.rank) for path, u in own.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    task = like.get("task_type")
    return {
        "peft_type": "LORA",
        "task_type": None if task in _HEADS and not like.get("modules_to_save") else task,
        "base_model_name_or_path": like.get("base_model_name_or_path"),
        "revision": like.get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": like.get("lora_dropout", 0.0),
        "use_rslora": rslora,
        "use_dora": False,
        "lora_bias": any(update.bias is not None for update in updates.values()),
        "bias": like.get("bias", "none"),
        "fan_in_fan_out": like.get("fan_in_fan_out", False),
        "init_lora_weights": True,
        "modules_to_save": like.get("modules_to_save"),
        "target_modules": _short(sorted(own), paths),
        "rank_pattern": {f"^{re.escape(p)}": r for p, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {f"^{re.escape(p)}": a for p, a in sorted(alphas.items()) if a != alpha},
    }


def _plain(alpha: float) -> float | int:
    alpha = round(float(alpha), 10)
    return int(alpha) if alpha.is_integer() else alpha


def _short(wanted: list[str], paths: Collection[str]) -> list[str] | str:
    """Names of modules as people write them, if they mean these modules and no others; else whole paths."""
    known = {*paths, *wanted}
    for names in (sorted({path.rpartition(".")[2] for path in wanted}), wanted):
        if {path for path in known if ends_in(path, names)} == set(wanted):
            return names
    return "|".join(re.escape(path) for path in wanted)
