"""What a calibration leaves for use elsewhere: an index of the factors and spectra of maps, and of scales; nothing of the data.

Next to the index lie the files that it names, each with its digest. What can be inferred of the data from them depends on how
many samples there were: `exposed` says it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bico.errors import ConfigError
from bico.linalg.procrustes import Completion, MapRule

FORM = 1
"""Of the index; raised when an older reader could not read it."""
INDEX = "pack.json"
FILES = "artefacts"


@dataclass(frozen=True)
class PackedModel:
    """One of the two models, which are not in the pack."""

    name: str
    digest: str
    """sha256 of what determines its numbers."""


@dataclass(frozen=True)
class PackedMaps:
    """Maps of one signal by one rule in one block, at every count: one artefact."""

    key: str
    covariances: str
    """The key of what they were solved from, which is not in the pack."""
    group: str
    signal: str
    tensors: tuple[str, ...]
    completion: str
    rank: int
    whiten: float = 0.0

    @property
    def rule(self) -> MapRule:
        """By which they were solved."""
        return MapRule(Completion(self.completion), self.rank, self.whiten)


@dataclass(frozen=True)
class PackedDraw:
    """What one draw of samples of one task has left."""

    task: str
    data: str
    """Digest of the task's data and of how it is posed."""
    seed: int
    sampling: str
    sizes: Mapping[int, int]
    """Samples, by the count that was asked for."""
    maps: tuple[PackedMaps, ...]
    scales: Mapping[str, str] = field(default_factory=dict)
    """Keys, by side."""
    most: Mapping[int, int] = field(default_factory=dict)
    """The directions that the richest map keeps, by count."""


@dataclass(frozen=True)
class Pack:
    """The index of a pack."""

    source: PackedModel
    target: PackedModel
    methods: tuple[str, ...]
    """Specs that the pack serves."""
    completion: str
    """What maps do outside the calibrated span, where a spec does not say."""
    rank: int
    """How many directions they keep, likewise."""
    draws: tuple[PackedDraw, ...]
    files: Mapping[str, Mapping[str, str]]
    """By key, the artefact's files with their sha256."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(draw.task for draw in self.draws))

    @property
    def fewest(self) -> tuple[int, int]:
        """Of the draw and count that expose most: samples, and the directions that its richest map keeps."""
        found = [(size, draw.most.get(count, 0)) for draw in self.draws for count, size in draw.sizes.items()]
        return min(found, key=lambda one: one[0] - one[1])

    @property
    def is_small(self) -> bool:
        """Whether some map keeps as many directions as there were samples. Then their features, or gradients, may be
        all that it spans, and whoever has an example can test whether it was among them.
        """
        samples, directions = self.fewest
        return samples <= directions

    def to_json(self) -> str:
        """As the text of a file."""
        found = {"bico_pack": FORM} | asdict(self)
        for maps in (one for draw in found["draws"] for one in draw["maps"] if not one["whiten"]):
            del maps["whiten"]  # which older readers do not know
        return json.dumps(found, indent=1, sort_keys=True)

    @classmethod
    def parse(cls, text: str, where: str) -> "Pack":
        """Reads what `to_json` gave.

        Arguments:
            where: How messages call the pack.

        Raises:
            ConfigError: If the text is no index, is of a later form, or names files outside of the pack.
        """
        try:
            found = json.loads(text)
            form = found.pop("bico_pack")
            if form > FORM:
                raise ConfigError(f"{where}: a pack of a later bico (form {form}): bring this one up to date.")
            pack = cls(
                PackedModel(**found["source"]),
                PackedModel(**found["target"]),
                tuple(found["methods"]),
                found["completion"],
                int(found["rank"]),
                tuple(map(_draw, found["draws"])),
                {key: dict(files) for key, files in found["files"].items()},
                found["versions"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{where}: not the index of a pack ({error!r}); make the pack again.") from error
        if not pack.draws:
            raise ConfigError(f"{where}: the pack is empty; make it again with methods that calibrate, such as bico.")
        for key, files in pack.files.items():
            if strange := [name for name in (key, *files) if not _is_inside(name)]:
                raise ConfigError(f"{where}: {strange[0]!r} names a file outside of the pack: do not use it.")
        return pack


def _draw(found: dict[str, Any]) -> PackedDraw:
    maps = tuple(PackedMaps(**one | {"tensors": tuple(one["tensors"])}) for one in found["maps"])
    counts = {what: {int(count): n for count, n in found[what].items()} for what in ("sizes", "most")}
    return PackedDraw(**found | counts | {"maps": maps})


def _is_inside(name: str) -> bool:
    """Whether a path names something below the folder it is read from."""
    parts = name.split("/")
    return all(parts) and not {"..", "."} & {*parts} and not re.search(r"[\\:\0]", name)


def exposed(pack: Pack) -> tuple[str, ...]:
    """What a pack says of the data, in sentences."""
    samples, directions = pack.fewest
    said = [
        "Nothing of the data is in the pack: no example, label, class or index. In it stand, for each layer, the directions "
        "that both models' activations and loss gradients share on the samples, how strong they are and how large signals "
        "are on average; and the task's name, a digest of the data, seeds and counts.",
        f"The fewest samples against directions: {samples} samples, and {directions} directions in the richest map.",
    ]
    if pack.is_small:
        said.append(
            "That is LOW: such a map may span the samples' own features. Who has both models and an example can test "
            "whether it was among the samples, and a single sample's features can be read off where there was one. Give such "
            "a pack only to those who may see the data."
        )
    else:
        said.append(
            "No map spans all of its samples, so membership of an example cannot be read off exactly; it can still be "
            "guessed at better than by chance, and nothing here is a guarantee such as differential privacy."
        )
    if any(len(draw.sizes) > 1 for draw in pack.draws):
        said.append(
            "Counts are nested: maps at two counts together say more of the samples between them than one alone."
        )
    return tuple(said)
