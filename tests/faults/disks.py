"""Real disks that are full or only for reading, seen by us alone.

A process moves into a mount namespace of its own before it starts a thread. What it mounts there is seen by what it
forks and by nobody else, and ends with them. Linux lets root do so.
"""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_NEW_NAMESPACE = 0x20000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_EVEN_IF_BUSY = 2


@cache
def possible() -> bool:
    """Whether this machine lets us mount."""
    if (child := os.fork()) == 0:
        try:
            alone()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def alone() -> None:
    """Moves this process into a namespace of its own."""
    _checked(_libc().unshare(_NEW_NAMESPACE))
    _mount(None, Path("/"), None, _RECURSIVE | _PRIVATE)


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """The kernel refuses every write below a folder."""
    _mount(path, path, None, _BIND)
    try:
        _mount(None, path, None, _REMOUNT | _BIND | _READ_ONLY)
        yield
    finally:
        _unmount(path)


@contextmanager
def small(path: Path, size: int) -> Iterator[None]:
    """Puts a folder on a disk of so many bytes; what is on it at the end is what others find in the folder."""
    with TemporaryDirectory() as name:
        aside = Path(name) / "content"
        shutil.copytree(path, aside)
        _mount("tmpfs", path, "tmpfs", 0, f"size={size}")
        try:
            shutil.copytree(aside, path, dirs_exist_ok=True)
            yield
        finally:
            shutil.rmtree(aside)
            shutil.copytree(path, aside)
            _unmount(path)
            for old in path.iterdir():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            shutil.copytree(aside, path, dirs_exist_ok=True)


def _mount(source: str | Path | None, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else str(word).encode() for word in (source, target, kind, options)]
    _checked(_libc().mount(*words[:3], ctypes.c_ulong(flags), words[3]))


def _unmount(path: Path) -> None:
    _checked(_libc().umount2(str(path).encode(), _EVEN_IF_BUSY))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
