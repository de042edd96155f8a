"""The files of a model on this machine, whatever its family."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HEAD_FILE, CLASSES_FILE = "linear_head.safetensors", "linear_head.json"
"""Beside a model whose task vector came with a classifier: the classifier, and what its classes are called."""


@dataclass(frozen=True)
class ModelFiles:
    """A resolved reference: everything on this machine that determines the model."""

    ref: str
    family: str
    """Name of the family that found it, and that loads it."""
    weights: Path
    files: tuple[Path, ...]
    """Weights, configuration and tokenizer: what the digest covers."""
    folder: Path | None = None
    """Where they lie together; None if the family's library brings configuration and tokenizer."""
    built_in: str = ""
    """What determines the model and lies in no file: of what the library brings, its name and what makes it another."""
    allow_pickle: bool = False
    """Whether weights that `torch.save` wrote may be read, tensors only."""
    pooling: str = ""
    """Of a text encoder whose folder does not say how tokens become features: how they do; empty for what is usual."""
    classifier: Path | None = None
    """Folder of an expert whose own classification head the model's loss is taken in; its files are among `files`."""
    blockwise: bool = False
    """Whether its weights stay on the disk, and one block at a time is in memory. The same weights: the digest is the same."""

    def digest(self) -> str:
        """sha256 over what the library brings and the contents of the files."""
        total = hashlib.sha256(self.built_in.encode())
        if self.pooling or self.classifier:
            total.update(f"pooling={self.pooling}, classifier={self.classifier is not None}".encode())
        for path in self.files:
            total.update(path.name.encode() + hashed_once(path))
        return total.hexdigest()


@dataclass(frozen=True)
class References:
    """References of a family's own, beside folders, zoo and hub."""

    scheme: str
    """What they begin with, before a colon."""
    spelling: str
    """One of them, as help texts show it."""
    find: Callable[[str], ModelFiles]
    """Finds, or downloads, the files of such a reference. Raises UnknownModelError if there is no such model and says which
    are near, and CheckpointError if it cannot be had."""


def hashed_once(path: Path) -> bytes:
    """sha256 of a file, read once per process and version of it."""
    about = path.stat()
    return _file_digest(path, about.st_mtime_ns, about.st_size)


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> bytes:
    """Hashes a file once per process and version of it: every stage's key asks for its models' digests."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
