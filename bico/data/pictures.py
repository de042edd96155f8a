"""From any cell that holds a picture to an RGB picture of 8 bits.

A cell is a file's bytes, alone or in a dictionary with its path; a path; a picture of PIL; an array; or a list of one of
these. 16 bits are scaled to 8 and never clipped, transparency is put over white, a camera's rotation is undone.
"""

import base64
import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bico.errors import DataError, one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

BACKGROUND = (255, 255, 255)
"""What transparent pictures are put over."""
TOPS = (1, 255, 65535)
"""White, in pictures whose format does not say it; the whole column decides for one of them."""
_CODED = re.compile(r"(data:image/[\w.+-]+;base64,)?(?:iVBORw0KGgo|/9j/4|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{40}")
"""How the files of pictures begin where they are written as text: PNG, JPEG, GIF, WebP in base64."""
DECODING = 1
"""Revision of how wide and transparent pictures become 8 bits of RGB; raise it when they do so otherwise."""


class UnreadableError(Exception):
    """A cell that holds no picture; says why."""


def decode(cell: Any, bases: Sequence[Path] = ()) -> Any:
    """Returns a cell's picture, of PIL or an array, as its format has it.

    Arguments:
        bases: What relative paths may be relative to; the first where there is such a file counts, the working directory
            comes last.

    Raises:
        UnreadableError: If there is none.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(cell, Image.Image):
        return cell
    if isinstance(cell, list | tuple | np.ndarray):
        return decode(cell[0], bases) if len(cell) == 1 and not isinstance(cell[0], list | np.ndarray) else _array(cell)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size: refused beyond Pillow's limit, and of nothing else
            picture = Image.open(io.BytesIO(content(cell, bases)))
            picture.load()
            return ImageOps.exif_transpose(picture) or picture
    except UnreadableError:
        raise
    except UnidentifiedImageError:
        raise UnreadableError("no picture in a format that Pillow knows") from None
    except Exception as error:  # each of Pillow's decoders has errors of its own
        raise UnreadableError(
            f"no picture that Pillow can read ({type(error).__name__}: {one_line(error, 120)})"
        ) from None


def content(cell: Any, bases: Sequence[Path] = ()) -> bytes:
    """The bytes of a cell's file.

    Raises:
        UnreadableError: If there is none.
    """
    path = cell
    if isinstance(cell, dict):
        cell, path = cell.get("bytes"), cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if path is None:
        raise UnreadableError("nothing")
    if not isinstance(path, str | Path):
        raise UnreadableError(f"a {type(path).__name__} and no picture")
    if "://" in str(path):
        raise UnreadableError(f"an address, {path}: download the pictures and name their paths")
    if (coded := _CODED.match(str(path))) is not None:
        with contextlib.suppress(ValueError):
            return base64.b64decode(str(path)[len(coded[1] or "") :], validate=True)
    own = Path(path).expanduser()
    try:
        return next((p for base in bases if (p := base / own).is_file()), own).read_bytes()
    except (OSError, ValueError) as error:
        raise UnreadableError(
            f"the path {str(path)[:100]}, which cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None


def _array(cell: Any) -> np.ndarray:
    """An array (height, width), or with 1, 3 or 4 channels last."""
    try:
        array = np.asarray(cell)
    except ValueError:
        raise UnreadableError("a list of rows of different lengths") from None
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype.kind not in "uifb" or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise UnreadableError(f"an array of shape {array.shape} and type {array.dtype}, and no picture")
    return array


def wide(decoded: Any) -> np.ndarray | None:
    """The values of a picture whose format does not say what white is: floats, whole numbers of 32 bits, arrays."""
    if isinstance(decoded, np.ndarray):
        return decoded
    return np.asarray(decoded) if decoded.mode in ("I", "F") else None


def to_rgb(decoded: Any, top: int | None = None) -> "Image":
    """Returns a picture as RGB of 8 bits.

    Arguments:
        top: The value of white, for pictures that are `wide`.
    """
    from PIL import Image

    values = wide(decoded)
    if values is None and decoded.mode.startswith("I;16"):
        values, top = np.asarray(decoded), 65535
    if values is not None:
        scaled = np.clip(values.astype(np.float64) * (255 / (top or 255)), 0, 255)
        decoded = Image.fromarray(np.round(scaled).astype(np.uint8))
    if decoded.has_transparency_data:
        ground = Image.new("RGBA", decoded.size, (*BACKGROUND, 255))
        decoded = Image.alpha_composite(ground, decoded.convert("RGBA"))
    return decoded.convert("RGB")


def is_plain(decoded: Any) -> bool:
    """Whether `convert("RGB")` alone would give the same picture: 8 bits, nothing transparent."""
    if isinstance(decoded, np.ndarray) or decoded.mode[0] in "IF":
        return False
    return not decoded.has_transparency_data or decoded.convert("RGBA").getextrema()[3][0] == 255


@dataclass
class Looked:
    """What a look at all pictures has shown."""

    plain: bool = True
    """Whether all are of 8 bits and opaque."""
    most: float | None = None
    """The largest value of pictures whose format does not say what white is."""
    outside: "hashlib._Hash | None" = field(default=None, repr=False)
    """Digest of files that cells name by path."""


@dataclass(frozen=True)
class PictureColumn:
    """The pictures of one split."""

    part: "Dataset"
    column: str
    bases: tuple[Path, ...]
    where: str
    """How messages call the split."""

    def cells(self, rows: Any) -> list[Any]:
        """Cells as they are stored."""
        return list(self._raw[rows][self.column])

    @cached_property
    def _raw(self) -> "Dataset":
        from datasets import Image

        if not isinstance(self.part.features[self.column], Image):
            return self.part.select_columns([self.column])
        return self.part.select_columns([self.column]).cast_column(self.column, Image(decode=False))

    def read(self, cell: Any, row: int) -> Any:
        """Decodes a cell.

        Raises:
            DataError: If it holds no picture; it names split and row.
        """
        try:
            return decode(cell, self.bases)
        except UnreadableError as why:
            raise self.error(row, str(why)) from None

    def error(self, row: int, why: str) -> DataError:
        return DataError(
            f"{self.where}, row {row} (from 0): `{self.column}` holds {why}: mend the row or leave it out."
        )

    def look(self, seen: Looked, rows: list[int]) -> None:
        """Looks at every picture before any work: that it is there, whole, and what it is made of.

        Raises:
            DataError: At the first that is not.
        """
        for start in range(0, len(rows), 64):
            batch = rows[start : start + 64]
            for row, cell in zip(batch, self.cells(batch), strict=True):
                self._look(seen, cell, row)

    def _look(self, seen: Looked, cell: Any, row: int) -> None:
        path = cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else cell
        if isinstance(path, str):
            try:
                seen.outside = seen.outside or hashlib.sha256()
                seen.outside.update(hashlib.sha256(content(cell, self.bases)).digest())
            except UnreadableError as why:
                raise self.error(row, str(why)) from None
        if _whole_and_plain(cell, self.bases):
            return
        decoded = self.read(cell, row)
        seen.plain = seen.plain and is_plain(decoded)
        values = wide(decoded)
        if values is not None:
            if not np.isfinite(values).all() or values.min() < 0:
                raise self.error(row, "values below 0 or none at all: store pictures of 8 bits")
            seen.most = max(seen.most or 0, float(values.max()))

    def example(self, row: int, top: int | None) -> "Image":
        return to_rgb(self.read(self.cells([row])[0], row), top)


def _whole_and_plain(cell: Any, bases: Sequence[Path]) -> bool:
    """Whether a file is seen to be whole and plain from its frame alone, without decoding it; if in doubt, not."""
    from PIL import Image

    try:
        data = content(cell, bases)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data))
            if picture.mode not in ("L", "RGB", "CMYK") or picture.has_transparency_data:
                return False
            if picture.format == "JPEG":
                return b"\xff\xd9" in data[-64:]
            if picture.format == "PNG":
                picture.verify()
                return b"IEND" in data[-64:]
    except Exception:  # whatever is wrong, decoding tells it better
        return False
    return False


def top_of(seen: Looked, where: str) -> int | None:
    """Decides what is white in pictures whose format does not say it: what the whole column nearly reaches.

    Raises:
        DataError: If it reaches nothing of the kind.
    """
    if seen.most is None:
        return None
    top = next((top for top in TOPS if seen.most <= top * (1 + 1e-6)), None)
    if top is None or seen.most <= top / 2:
        raise DataError(
            f"{where}: its pictures have values up to {seen.most:g}, and white is 1, 255 or 65535: scale them, or store "
            "pictures of 8 bits."
        )
    return top
