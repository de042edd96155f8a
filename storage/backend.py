"""What a place for artefacts must be able to do. Two are there: a folder and a bucket."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from storage.manifest import Manifest


class Backend(Protocol):
    """One place for artefacts, its commit protocol, and the leases on what is in use."""

    url: str
    """How other processes and machines open it."""
    staging: Path
    """A folder on this machine with `tmp/` to build in and `locks/` for who builds what."""
    vouches: bool
    """Whether `look` alone shows any change of content, so that it need not be read to be taken for there."""

    def look(self, key: str) -> Manifest:
        """Returns an artefact's manifest; reads no content.

        Raises:
            FaultError: If it is not there, or something that can be seen from outside is wrong with it.
        """

    def commit(self, finished: Mapping[str, tuple[Path, Manifest]]) -> None:
        """Makes finished folders visible, each in one step; consumes the folders.

        An artefact that is there and sound stays, and ours is dropped; one that is damaged is replaced.
        """

    def open(self, manifest: Manifest, again: bool) -> Path:
        """Returns a folder of this machine with the artefact's files, not yet read through.

        Arguments:
            again: Do not use a copy that is here already.

        Raises:
            FaultError: If they are not there, or not as the manifest says.
        """

    def remove(self, key: str, unless_leased: bool = False) -> bool:
        """Makes an artefact disappear in one step, then deletes it; whether it is gone."""

    def listed(self) -> Iterator[str]:
        """Every artefact that is there, sound or not."""

    def lease(self, keys: Iterable[str]) -> None:
        """Leases keys for as long as this process lives, so that `gc` spares them; before they are looked at, not after."""

    def leased(self) -> set[str]:
        """The keys that living processes have leased."""

    def write_note(self, name: str, content: bytes) -> None:
        """Keeps a small file beside the artefacts; replaces it."""

    def notes(self) -> dict[str, Callable[[], bytes]]:
        """The notes by name, each read when called."""

    def delete_note(self, name: str) -> None:
        """Deletes a note, if it is there."""

    def sweep(self) -> None:
        """Deletes what killed builders left behind more than a day ago."""

    def sweep_locks(self) -> None:
        """Deletes this machine's locks of keys that are not there and that nobody is about to build."""

    def sweep_lost(self) -> None:
        """Deletes committed files more than a day old that no manifest names; slow, so only `gc` asks for it."""
