"""Every picture is read rightly or refused by split and row."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps

from bico.data.base import Task
from bico.data.pictures import UnreadableError, decode, is_plain, to_rgb
from bico.data.tasks import get_task
from bico.errors import BicoError, DataError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
"""Every grey of 8 bits once."""
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def grey(cell: Any, top: int | None = None) -> np.ndarray:
    shown = np.asarray(to_rgb(decode(cell), top))
    assert shown.shape == (16, 16, 3) and (shown == shown[..., :1]).all()
    return shown[..., 0]


def task(folder: Path, cells: list[Any], feature: Any = None, test: list[Any] | None = None) -> Task:
    """A task whose pictures are the cells; two classes by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    features = None
    if feature is not None:
        features = datasets.Features(image=feature, label=datasets.ClassLabel(names=["dark", "light"]))
    for split, part in (("train", cells), ("test", cells if test is None else test)):
        rows = {"image": part, "label": [n % 2 for n in range(len(part))]}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
    return get_task(folder.name, [folder])


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    sixteen = Image.fromarray(RAMP.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        assert (grey(saved(sixteen, kind)) == RAMP).all()
    big_endian = Image.frombytes("I;16B", (16, 16), (RAMP.astype(np.uint16) * 257).astype(">u2").tobytes())
    assert (grey(big_endian) == RAMP).all()


@pytest.mark.parametrize(
    ("array", "top"),
    [
        ((RAMP / 255).astype(np.float32), 1),
        (RAMP.astype(np.float32), 255),
        (RAMP.astype(np.int32), 255),
        (RAMP.astype(np.int32) * 257, 65535),
        (RAMP > 127, 1),
    ],
)
def test_the_column_says_what_is_white_where_the_format_does_not(array: np.ndarray, top: int, tmp_path: Path) -> None:
    """A dark picture beside a light one stays dark: the column decides, not each picture."""
    expected = RAMP if array.dtype != bool else (RAMP > 127) * 255
    values = array.astype(np.uint8) if array.dtype == bool else array
    cells = [values.tolist(), (values // 4 if values.dtype.kind in "iu" else values / 4).tolist()]
    train = task(tmp_path / "wide", cells, datasets.List(datasets.List(datasets.Value(str(values.dtype))))).open(
        "train"
    )
    assert (np.asarray(train.example(0))[..., 0] == expected).all()
    assert abs(int(np.asarray(train.example(1)).max()) - 63) <= 1 or array.dtype == bool
    assert (grey(values, top) == expected).all()


def test_values_that_reach_no_white_are_refused(tmp_path: Path) -> None:
    feature = datasets.List(datasets.List(datasets.Value("int32")))
    for name, most in (("sixteen", 16), ("twelve_bits", 4095), ("more", 70000)):
        with pytest.raises(DataError, match=f"values up to {most}, and white is 1, 255 or 65535"):
            task(tmp_path / name, [np.full((4, 4), most).tolist()] * 2, feature)
    with pytest.raises(DataError, match="train, row 1 .*values below 0"):
        task(tmp_path / "negative", [[[0, 255]], [[-1, 255]]], feature)


def clear(mode: str) -> Image.Image:
    """Black, of which the left half is transparent."""
    alpha = Image.fromarray(np.where(np.arange(16) < 8, 0, 255).astype(np.uint8)[None].repeat(16, 0))
    if mode == "P":
        picture = Image.fromarray(np.where(np.arange(16) < 8, 0, 1).astype(np.uint8)[None].repeat(16, 0)).convert("P")
        picture.putpalette([0, 0, 0] * 2)
        return picture
    picture = Image.new(mode.removesuffix("A"), (16, 16))
    picture.putalpha(alpha)
    return picture


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str) -> None:
    data = saved(clear(mode), **({"transparency": 0} if mode == "P" else {}))
    assert (grey(data)[:, :8] == 255).all() and (grey(data)[:, 8:] == 0).all()
    assert not is_plain(decode(data))


def test_opaque_pictures_are_what_they_were() -> None:
    """Their keys are the same as before, so their pixels must be."""
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    for picture in (Image.fromarray(COLOURS), Image.fromarray(COLOURS).convert("RGBA"), Image.fromarray(RAMP)):
        assert is_plain(picture)
        assert (np.asarray(to_rgb(picture)) == np.asarray(picture.convert("RGB"))).all()
    assert np.abs(np.asarray(to_rgb(decode(saved(cmyk, "TIFF")))).astype(int) - COLOURS).max() <= 1


def test_a_cameras_rotation_is_undone() -> None:
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    turned = Image.fromarray(COLOURS[:8])
    shown = decode(saved(turned, exif=exif))
    assert (np.asarray(shown) == np.asarray(turned.transpose(Image.Transpose.ROTATE_270))).all()
    assert ImageOps.exif_transpose(shown).size == shown.size == (8, 16)


@pytest.mark.parametrize(
    "cell",
    [
        lambda path: path.read_bytes(),
        lambda path: {"bytes": path.read_bytes(), "path": None},
        lambda path: {"bytes": None, "path": str(path)},
        str,
        lambda path: path.name,
        lambda path: [{"bytes": path.read_bytes()}],
        Image.open,
        lambda path: COLOURS,
        lambda path: COLOURS.tolist(),
        lambda path: COLOURS.transpose(2, 0, 1),
    ],
)
def test_a_picture_may_lie_in_any_of_these(cell: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(saved(Image.fromarray(COLOURS)))
    assert (np.asarray(to_rgb(decode(cell(tmp_path / "p.png"), [tmp_path]), 255)) == COLOURS).all()


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (None, "nothing"),
        ({"bytes": None, "path": None}, "nothing"),
        (b"no picture", "no picture in a format that Pillow knows"),
        ("none.png", "none.png, which cannot be read"),
        ("https://host/a.png", "an address"),
        (3, "a int and no picture"),
        ([[1, 2], [3]], "rows of different lengths"),
        ([1, 2, 3], r"an array of shape \(3,\)"),
    ],
)
def test_what_is_no_picture_says_why(cell: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=why):
        decode(cell, [tmp_path])


@pytest.mark.parametrize(("kind", "spoil"), [
    ("PNG", lambda data: data[:-30]), ("JPEG", lambda data: data[: len(data) // 2]), ("PNG", lambda data: b"no picture"),
    ("PNG", lambda data: None), ("WEBP", lambda data: data[:-30]), ("PNG", lambda data: data.replace(b"IDAT", b"IDOT")),
])  # fmt: skip
def test_one_bad_picture_is_named_by_split_and_row_before_any_work(
    kind: str, spoil: Callable[[bytes], Any], tmp_path: Path
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    good = saved(noise, kind)
    cells = [{"bytes": good, "path": None} for _ in range(6)]
    spoilt = spoil(good)
    bad = [*cells[:4], None if spoilt is None else {"bytes": spoilt, "path": None}, cells[5]]
    with pytest.raises(BicoError, match=r"test, row 4 \(from 0\): `image` holds (nothing|no picture)") as caught:
        task(tmp_path / "one", cells, datasets.Image(), bad)
    assert "\n" not in str(caught.value)
    assert task(tmp_path / "all", cells, datasets.Image()).sizes["test"] == 6


def test_keys_hold_how_pictures_were_decoded_and_what_lies_outside_the_table(tmp_path: Path) -> None:
    plain = [saved(Image.fromarray(COLOURS))] * 2
    assert task(tmp_path / "plain", plain, datasets.Value("binary")).about == {}
    wide = task(tmp_path / "wide", [saved(Image.fromarray(RAMP.astype(np.uint16) * 257))] * 2, datasets.Value("binary"))
    assert wide.identity["decoding"] == 1
    (tmp_path / "p.png").write_bytes(plain[0])
    paths = [task(tmp_path / name, ["../p.png"] * 2, datasets.Value("string")) for name in ("first", "second")]
    assert paths[0].identity["pictures"] == paths[1].identity["pictures"]
    (tmp_path / "p.png").write_bytes(saved(Image.fromarray(RAMP)))
    assert (
        task(tmp_path / "third", ["../p.png"] * 2, datasets.Value("string")).identity["pictures"]
        != (paths[0].identity["pictures"])
    )
