"""Read the maps that `tasks/procrustes.py` has stored."""

from collections.abc import Iterable

from torch import Tensor

from bico.calibration.signals import Signal, SignalKey
from bico.linalg.procrustes import Completion
from bico.methods.evidence import undeclared
from storage.arrays import read_arrays
from storage.artefacts import folder_of
from tasks.cached_stage import Workspace
from tasks.names import array_name
from tasks.procrustes import SignalMaps


class StoredMaps:
    """The maps of a calibrated pair at one sample count; each artefact is opened when a method first asks for it."""

    def __init__(self, space: Workspace, parts: Iterable[SignalMaps], samples: int) -> None:
        self._parts = {(tensor, part.signal, part.completion): part for part in parts for tensor in part.tensors}
        self._space, self._samples = space, samples
        self._read: dict[tuple[str, Signal, Completion], Tensor] = {}

    def __call__(self, key: SignalKey, completion: Completion) -> Tensor:
        place = (*key, completion)
        if place not in self._read:
            if place not in self._parts:
                raise undeclared(f"alignment map ({completion}) for the {key[1]} of {key[0]}")
            part = self._parts[place]
            names = [f"{array_name(tensor, part.signal, self._samples)}/map" for tensor in part.tensors]
            maps = read_arrays(folder_of(self._space.artefacts.ref(part.key)) / "maps", names)
            self._read |= {(t, *place[1:]): maps[n] for t, n in zip(part.tensors, names, strict=True)}
        return self._read[place]
