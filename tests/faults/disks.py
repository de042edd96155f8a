"""Real disks that are full or only for reading, seen by one process alone.

A process moves into a mount namespace of its own before it starts a thread. What it mounts there is seen by nobody else
and ends with it. Linux lets root do so.
"""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_NEW_NAMESPACE = 0x20000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18


@cache
def possible() -> bool:
    """Whether this machine lets us mount."""
    if (child := os.fork()) == 0:
        try:
            _alone()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def on_a_mount_of_its_own(path: Path) -> None:
    """So that `turn_read_only` changes nothing for others."""
    _alone()
    _mount(path, path, None, _BIND)


def turn_read_only(path: Path) -> None:
    """From now on the kernel refuses every write below `path`, in all threads of this process."""
    _mount(None, path, None, _REMOUNT | _BIND | _READ_ONLY)


@contextmanager
def small(path: Path, size: int) -> Iterator[None]:
    """Puts a folder on a disk of so many bytes; what is on it at the end is what others find in the folder."""
    below = os.open(path, os.O_DIRECTORY)  # the folder itself, once the disk hides it
    _alone()
    _mount("tmpfs", path, "tmpfs", 0, f"size={size}")
    real = Path(f"/proc/self/fd/{below}")
    shutil.copytree(real, path, dirs_exist_ok=True)
    try:
        yield
    finally:
        for old in real.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(path, real, dirs_exist_ok=True)


def _alone() -> None:
    _checked(_libc().unshare(_NEW_NAMESPACE))
    _mount(None, Path("/"), None, _RECURSIVE | _PRIVATE)


def _mount(source: str | Path | None, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else str(word).encode() for word in (source, target, kind, options)]
    _checked(_libc().mount(*words[:3], ctypes.c_ulong(flags), words[3]))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
