"""Which files make an adapter at a place: from names and JSON alone, before torch is imported."""

import json
from pathlib import Path
from typing import Any

from bico.adapters.config import check_config
from bico.errors import CheckpointError, one_line
from bico.models.families import find_weights
from bico.models.weight_files import ADAPTER

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
_SHARDS = "adapter_model-*-of-*.safetensors"


def is_adapter(place: str | Path) -> bool:
    """Whether there is an adapter at a place: its folder, or a file in that; looks at names only."""
    place = Path(place).expanduser()
    folder = place if place.is_dir() else place.parent
    named = place.is_dir() or place.stem.startswith("adapter_model") or place.name == CONFIG
    return named and ((folder / CONFIG).is_file() or any(folder.glob("adapter_model.*")))


def check_files(place: str | Path) -> Path:
    """Returns an adapter's folder, if the files that are read are there: from names and JSON alone.

    Raises:
        CheckpointError: If they are not, or are of another kind.
    """
    place = Path(place).expanduser()
    folder = place if place.is_dir() else place.parent
    if not (folder / CONFIG).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        more = f" itself, but {', '.join(inside)} in it" if inside else ""
        raise CheckpointError(
            f"{folder} holds no {CONFIG}{more}, which says what an adapter's numbers mean: give the folder of one adapter, "
            "as `save_pretrained` writes it."
        )
    check_config(read_config(folder), str(place))
    weights_in(folder)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a folder's configuration; raises CheckpointError if it is none."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no configuration of an adapter ({one_line(error)}): fetch it again."
        ) from error
    return config


def weights_in(folder: Path) -> list[Path]:
    index, whole = folder / f"{WEIGHTS}.index.json", folder / WEIGHTS
    shards = sorted(folder.glob(_SHARDS))
    if whole.is_file() and not shards:
        return [whole]
    if not whole.is_file() and not shards:
        others = sorted(path.name for path in folder.glob("adapter_model.*"))
        if others:
            raise CheckpointError(
                f"{folder} holds its adapter as {others[0]}, a pickle, which can run code when opened: save it as "
                f"safetensors where you trust it (`save_pretrained(folder, safe_serialization=True)`)."
            )
        raise CheckpointError(f"{folder} holds no {WEIGHTS} beside its {CONFIG}: fetch the folder again.")
    try:
        named = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} holds shards of an adapter without a readable {index.name} ({one_line(error)}): fetch it again."
        ) from error
    if whole.is_file() or named != shards:
        raise CheckpointError(f"{folder}: {index.name} names other files than lie there: fetch the folder again.")
    return shards


def find_expert(place: str | Path, allow_pickle: bool = False) -> list[Path]:
    """Returns the files that an expert at a place is read from: weights, or an adapter and its configuration.

    Raises:
        CheckpointError: If names of files and JSON tell that none can be read there.
    """
    if is_adapter(place):
        folder = check_files(place)
        return [folder / CONFIG, *weights_in(folder)]
    return list(find_weights(place, allow_pickle).paths)
