"""What a folder says of the way from texts to features: the modules of sentence-transformers, or none of them.

Modules are read from `modules.json` by the last part of their type, so that every version's spelling will do.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bico.errors import CheckpointError, one_line

CONFIG, MODULES = "config.json", "modules.json"
LENGTHS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
)
PROMPTS = "config_sentence_transformers.json"
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Poolings by the names of sentence-transformers, in the order in which several are joined (`bico.models.pooling`)."""
_SWITCHES = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "weightedmean_tokens": "weightedmean"}
"""What older pooling configurations call the modes, where that is not their name."""


@dataclass(frozen=True)
class Recipe:
    """From texts to features; by default what is done where a folder says nothing."""

    encoder: Path
    """The folder with configuration, weights and tokenizer of the encoder itself."""
    pooling: tuple[str, ...] = ("mean",)
    """Of `MODES`."""
    dense: tuple[Path, ...] = ()
    """Folders of linear maps behind the pooling, in their order."""
    normalised: bool = False
    """Whether features are brought to length one in the end, which probes do without."""
    longest: int | None = None
    """Tokens that a text is cut to; None for the encoder's own limit."""
    lower: bool = False
    """Whether texts are put into lower case before the tokenizer sees them."""
    prompt: str = ""
    """What is put before every text."""
    pools_prompt: bool = True
    """Whether the tokens of the prompt are pooled, too."""
    said: bool = True
    """Whether the folder says how its tokens are pooled."""


def read_recipe(folder: Path) -> Recipe:
    """Reads what a folder says of pooling and what follows it.

    Raises:
        CheckpointError: If a file is damaged, or names a module or a pooling that is not known.
    """
    if not (folder / MODULES).is_file():
        return Recipe(folder, said=False)
    modules = _json(folder / MODULES)
    try:
        places = [(str(part["type"]).rpartition(".")[2], folder / part["path"]) for part in modules]
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / MODULES} is no list of modules with type and path.") from error
    kinds = [kind for kind, _ in places]
    known = {"Transformer", "Pooling", "Dense", "Normalize", "Dropout"}  # dropout does nothing in eval mode
    if strange := [kind for kind in kinds if kind not in known]:
        raise CheckpointError(
            f"{folder / MODULES} names the module {strange[0]}: of sentence-transformers {', '.join(sorted(known))} are read."
        )
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:].count("Transformer") + kinds[2:].count("Pooling"):
        raise CheckpointError(
            f"{folder / MODULES} lists {', '.join(kinds)}: it must be one Transformer, one Pooling, and then Dense or Normalize."
        )
    if "Normalize" in kinds and "Dense" in kinds[kinds.index("Normalize") :]:
        raise CheckpointError(f"{folder / MODULES} has a Dense behind Normalize; only the other order is read.")
    encoder, pooling = places[0][1], _json(places[1][1] / CONFIG)
    lengths: dict[str, Any] = next((_json(encoder / name) for name in LENGTHS if (encoder / name).is_file()), {})
    prompts = _json(folder / PROMPTS) if (folder / PROMPTS).is_file() else {}
    return Recipe(
        encoder,
        _modes(pooling, places[1][1] / CONFIG),
        tuple(place for kind, place in places if kind == "Dense"),
        "Normalize" in kinds,
        lengths.get("max_seq_length"),
        bool(lengths.get("do_lower_case", False)),
        (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), ""),
        bool(pooling.get("include_prompt", True)),
    )


def write_pooling(folder: Path, mode: str, width: int) -> None:
    """Makes a plain folder of transformers one of sentence-transformers, which says how tokens become features."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds)
    ]
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    spelt = {name: key for key, name in _SWITCHES.items()}
    switches = {f"pooling_mode_{spelt.get(name, name)}": name == mode for name in MODES}
    about = {"word_embedding_dimension": width, **switches}
    (folder / "1_Pooling" / CONFIG).write_text(json.dumps(about, indent=2) + "\n")


def _modes(config: dict[str, Any], where: Path) -> tuple[str, ...]:
    """The poolings of a configuration: one name or several, or a switch for each."""
    named = config.get("pooling_mode")
    if named is None:
        switched = [key.removeprefix("pooling_mode_") for key, on in config.items() if on is True and "mode_" in key]
        named = [_SWITCHES.get(name, name) for name in switched]
    elif isinstance(named, str):
        named = [named]
    if not named or not set(named) <= set(MODES):
        raise CheckpointError(
            f"{where} asks for the pooling {', '.join(map(str, named)) or 'none'}: known are {', '.join(MODES)}."
        )
    return tuple(mode for mode in MODES if mode in named)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {one_line(error)}.") from error
