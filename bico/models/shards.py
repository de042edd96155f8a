"""Parameters that stay in their safetensors files, and are read when they are asked for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bico.errors import CheckpointError
from bico.models.weight_files import refuse_pickle, refuse_pointer

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of weights; what is stored otherwise is quantised."""


class Shards(Mapping[str, Tensor]):
    """Tensors in safetensors files, by the names that they are stored by. Nothing is kept of what was read."""

    def __init__(self, files: Sequence[Path], place: str) -> None:
        """Looks at the files' headers.

        Arguments:
            place: How messages call the checkpoint.

        Raises:
            CheckpointError: If a file cannot be read, is damaged, a pickle, or quantised.
        """
        self._place = place
        self._files: dict[str, Path] = {}
        self._kinds: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._looked_at: set[str] = set()
        for path in files:
            refuse_pickle(path, allowed=False)
            refuse_pointer(path)
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118  (no mapping)
                        part = file.get_slice(name)
                        self._files[name], self._kinds[name] = path, part.get_dtype()
                        self._shapes[name] = tuple(part.get_shape())
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error

    @property
    def dtype(self) -> torch.dtype:
        """In which the tensors serve: bfloat16 if all are in it, else float32."""
        return torch.bfloat16 if {*self._kinds.values()} == {"BF16"} else torch.float32

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def check_floats(self, names: Iterable[str]) -> None:
        """Raises CheckpointError if one of some tensors is stored as whole numbers."""
        for name in names:
            if self._kinds[name] not in DTYPES:
                raise CheckpointError(
                    f"{self._place} is quantised: {name} is of {self._kinds[name]}: give the weights in float32, float16 or "
                    "bfloat16."
                )

    def read(self, names: Iterable[str], dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Reads some tensors, as tensors of their own: the files are closed again.

        Raises:
            CheckpointError: If a file has been damaged or taken away, or a value is not finite.
        """
        of_file: dict[Path, list[str]] = {}
        for name in names:
            of_file.setdefault(self._files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for path, members in of_file.items():
            try:
                with safe_open(path, framework="pt") as file:
                    for name in members:
                        # A copy: what is mapped from the file would count as memory for as long as any of it is used.
                        found[name] = file.get_tensor(name).to(device, dtype, copy=True)
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error
        for name in found.keys() - self._looked_at:
            if not found[name].isfinite().all():
                raise CheckpointError(
                    f"{self._place}: parameter {name} holds NaN or infinite values; the checkpoint is broken."
                )
        self._looked_at |= found.keys()
        return found

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise KeyError(name)
        return self.read([name], self.dtype)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"Checkpoint {path} is damaged or no safetensors file ({error}): fetch or save it again.")
