"""Which files hold the weights at a place: a file, or a folder as libraries and training scripts leave it.

Only names and JSON are looked at, so that what cannot work is said before anything is loaded, or torch imported.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bico.errors import CheckpointError, one_line

TASK_VECTOR, LINEAR_HEAD = "task-vector.safetensors", "linear_head.safetensors"
"""What this project writes beside the weights of a model."""
ADAPTER = "adapter_config.json"
_NOT_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state|adapter_model|task-vector|linear_head)\b.*"
)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.\w+")
_EPOCH = re.compile(r"epoch_(\d+)\.pt")
SAFE, PICKLED = (".safetensors",), (".bin", ".pt", ".pth", ".ckpt")
USUAL = ("model", "pytorch_model")
"""What files of weights are called, but for their ending; in the order in which libraries look for them."""
# A zip archive since torch 1.6, a bare pickle before.
_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class WeightFiles:
    """Files that hold one set of weights."""

    paths: tuple[Path, ...]
    index: Mapping[str, str] | None = None
    """Of shards: which file holds which tensor."""
    notes: tuple[str, ...] = ()
    """What was chosen of several."""


def is_pickle(path: str | Path) -> bool:
    """Whether a file begins as a pickle or a TorchScript archive does, whatever its name says.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"Cannot read checkpoint {path} ({error.strerror}): check the path.") from error
    # A header of safetensors may be 640 bytes long, or 0x0280, which a pickle begins with too; behind its length stands JSON.
    return start.startswith(_STARTS) and not (start[4:8] == bytes(4) and start[8:] == b"{")


def refuse_pickle(path: str | Path, allowed: bool) -> None:
    """Does nothing for other formats, or if pickles are allowed.

    Raises:
        CheckpointError: If the file is a pickle that nobody has asked for, or cannot be read.
    """
    if is_pickle(path) and not allowed:
        raise CheckpointError(
            f"Checkpoint {path} is a pickle, which can run code when opened: convert it to safetensors where you trust "
            "it, or say --allow-pickle to have its tensors, and nothing else, read."
        )


def refuse_pointer(path: str | Path) -> None:
    """Raises CheckpointError if a file is what Git LFS leaves in place of one that it has not fetched."""
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path} is a pointer of Git LFS, not the weights: fetch them by `git lfs pull`.")


def weight_files(place: str | Path, allow_pickle: bool = False, stems: tuple[str, ...] = USUAL) -> WeightFiles:
    """Finds the files of weights at a place.

    Arguments:
        place: A file, an index of shards, or a folder: of open_clip or transformers, in one file or in shards with their index; of an
            open_clip training run, of which the last epoch is taken.
        allow_pickle: Also take files that `torch.save` wrote.
        stems: Of several files in a folder the first that is called so is taken.

    Raises:
        CheckpointError: If nothing is there, or what is there is not one set of weights: shards that are absent, an index
            of other files, several files of which none is the usual one, an adapter, a pickle that is not allowed.
    """
    place = Path(place).expanduser()
    if place.name.endswith(".index.json"):
        place = place.parent
    if not place.is_dir():
        refuse_adapter_file(place)
        refuse_pickle(place, allow_pickle)
        return WeightFiles((place,))
    refuse_adapter(place)
    found = _of_folder(place, SAFE, stems)
    if found is None:
        found = _of_folder(place, PICKLED, stems) or _of_run(place, stems)
    if found is None:
        raise CheckpointError(
            f"{_nothing(place)}: give a file of weights (.safetensors, or with --allow-pickle what `torch.save` wrote), or a "
            "folder that holds one."
        )
    for path in found.paths:
        refuse_pickle(path, allow_pickle)
    beside = sorted(p for p in place.iterdir() if p.suffix in PICKLED and p.stem in stems)
    if beside and found.paths[0].suffix in SAFE and not found.notes:
        return replace(found, notes=(f"{place}: takes {found.paths[0].name}, and not {_names(beside)}.",))
    return found


def refuse_adapter(folder: Path) -> None:
    """Raises CheckpointError if a folder is PEFT's, of a LoRA adapter."""
    if (folder / ADAPTER).is_file() or any(folder.glob("adapter_model.*")):
        raise CheckpointError(_adapter(folder))


def refuse_adapter_file(path: Path) -> None:
    """Raises CheckpointError if a file is called as PEFT calls its adapters."""
    if path.stem == "adapter_model":
        raise CheckpointError(_adapter(path))


def refuse_adapter_names(names: Iterable[str], place: str | Path) -> None:
    """Raises CheckpointError if tensors are called as PEFT calls those of a LoRA adapter."""
    if any(re.search(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b", name) for name in names):
        raise CheckpointError(_adapter(place))


def _adapter(place: str | Path) -> str:
    return (
        f"{place} is a LoRA adapter of PEFT, not a model: give its folder, with {ADAPTER}, as --expert of its base; or merge it into "
        "that (`PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)`) and give the folder."
    )


def _of_folder(folder: Path, suffixes: tuple[str, ...], stems: tuple[str, ...]) -> WeightFiles | None:
    """The weights of one format; None if there are none."""
    there = sorted(p for p in folder.iterdir() if p.suffix in suffixes and not _NOT_WEIGHTS.fullmatch(p.name))
    there = [path for path in there if not _EPOCH.fullmatch(path.name)]
    shards = [path for path in there if _SHARD.fullmatch(path.name)]
    whole = [path for path in there if path not in shards]
    indices = sorted(p for s in suffixes for p in folder.glob(f"*{s}.index.json") if not p.name.startswith("."))
    if len(indices) > 1:
        raise CheckpointError(
            f"{folder} holds {_names(indices)}: remove those that are not of the weights that you mean."
        )
    if indices:
        return _indexed(folder, indices[0], shards, whole)
    if shards:
        first = shards[0].name
        stem = _SHARD.fullmatch(first).group("stem")  # type: ignore[union-attr]
        raise CheckpointError(
            f"{folder} holds shards ({first} …) without their index ({stem}{shards[0].suffix}.index.json): fetch it, or all of "
            "the folder, again."
        )
    if not whole:
        return None
    if len(whole) == 1:
        return WeightFiles((whole[0],))
    usual = sorted((p for p in whole if p.stem in stems), key=lambda p: stems.index(p.stem))
    if not usual:
        raise CheckpointError(f"{folder} holds several files of weights ({_names(whole)}): name the one that you mean.")
    others = [path for path in whole if path != usual[0]]
    return WeightFiles((usual[0],), notes=(f"{folder}: takes {usual[0].name}, and not {_names(others)}.",))


def _indexed(folder: Path, index: Path, shards: list[Path], whole: list[Path]) -> WeightFiles:
    """The shards that an index names, if it names those that are there and nothing else lies beside them."""
    try:
        named = json.loads(index.read_text())["weight_map"]
        files = sorted(set(named.values()))
        if not files or any(Path(name).name != name for name in files):
            raise ValueError("it names no files of its folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards ({one_line(error)}): fetch it again.") from error
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder}: {len(absent)} of the {len(files)} files that {index.name} names are absent: {', '.join(absent[:3])}"
            f"{' …' if len(absent) > 3 else ''}. Fetch them, or the whole folder, again."
        )
    if strays := [path for path in (*whole, *shards) if path.name not in files]:
        raise CheckpointError(
            f"{folder}: {_names(strays)} lies beside the {len(files)} files that {index.name} names, which may be of other "
            "weights: remove what does not belong to those that you mean, the index or the file."
        )
    return WeightFiles(tuple(folder / name for name in files), named)


def _of_run(folder: Path, stems: tuple[str, ...]) -> WeightFiles | None:
    """The last epoch of an open_clip training run, which keeps them in `checkpoints`."""
    place = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    epochs = sorted((p for p in place.iterdir() if _EPOCH.fullmatch(p.name)), key=lambda p: int(p.stem.split("_")[1]))
    if not epochs and place != folder:
        return _of_folder(place, PICKLED, stems)
    if not epochs:
        return None
    notes = (f"{folder}: takes {epochs[-1].name}, the last of {len(epochs)} epochs.",) if len(epochs) > 1 else ()
    return WeightFiles((epochs[-1],), notes=notes)


def _nothing(folder: Path) -> str:
    """A folder without weights, and what is there in their place."""
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith("checkpoint-"))
    return f"{folder} holds no weights itself, but {', '.join(inside)}" if inside else f"{folder} holds no weights"


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)
