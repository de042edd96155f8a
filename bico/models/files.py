"""The files of a model on this machine, whatever its family."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CLIP, T5 = "clip", "t5"


@dataclass(frozen=True)
class ModelFiles:
    """A resolved reference: everything on this machine that determines the model."""

    ref: str
    name: str
    """In open_clip's terms, an architecture, or `local-dir:` and a folder; for other families always the latter."""
    weights: Path
    files: tuple[Path, ...]
    """Weights, configuration and tokenizer: what the digest covers."""
    allow_pickle: bool = False
    """Whether weights that `torch.save` wrote may be read, tensors only."""
    family: str = CLIP

    @property
    def folder(self) -> Path:
        return Path(self.name.removeprefix("local-dir:"))

    def digest(self) -> str:
        """sha256 over the contents of the files and, for a built-in architecture, its name."""
        total = hashlib.sha256(b"" if self.name.startswith("local-dir:") else self.name.encode())
        for path in self.files:
            about = path.stat()
            total.update(path.name.encode() + _file_digest(path, about.st_mtime_ns, about.st_size))
        return total.hexdigest()


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> bytes:
    """Hashes a file once per process and version of it: every stage's key asks for its models' digests."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
