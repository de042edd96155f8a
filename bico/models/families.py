"""The families of models: one entry says how a family is recognised, found, loaded, saved and described.

A family may also have a method `namings(parameters)`: how other libraries call its models' parameters, so that checkpoints
of theirs can be read (`bico.models.checkpoint_names`); and `weight_stems`, what its files of weights are called but for
their ending. One whose models may be told how they pool has `with_pooling`, and one that knows trained classification heads of
its library `with_classifier` and `save_classifier` (`bico.models.encoder.family`).

What its sites, losses and heads are is said by the model that it loads (`bico.models.protocol.Model`). Nothing else in
the project names a family: whoever needs one asks this table, by the family's name or with a folder.

Another package adds its own by an entry point of the group `bico.families` that names a `Family` object:

    [project.entry-points."bico.families"]
    bert = "my_package.bert:FAMILY"

The table is read before any model is: neither this module nor a family's entry imports torch or the family's library.
"""

import json
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bico.errors import CheckpointError, ConfigError, nearest, one_line
from bico.models.clip.family import CLIP
from bico.models.decoder.family import DECODER
from bico.models.encoder.family import ENCODER
from bico.models.files import CLASSES_FILE, HEAD_FILE, ModelFiles, References
from bico.models.t5.family import T5
from bico.models.weight_files import USUAL, WeightFiles, refuse_adapter, refuse_pickle, weight_files

if TYPE_CHECKING:
    from bico.models.checkpoint_names import Naming
    from bico.models.protocol import Model

GROUP = "bico.families"
ZOO, HUB = "zoo", "hf"
"""Schemes that are no family's own: a folder comes of them, and is recognised like any other."""
HUB_TOO, LOCAL_TOO = ("hf-hub",), "local-dir"
"""The hub's and a folder's, as open_clip spells them."""


@runtime_checkable
class Family(Protocol):
    """What a family has to say of itself; any object with these members will do."""

    @property
    def name(self) -> str:
        """Kept in `ModelFiles`, and so by everything that is made of a model."""
        ...

    @property
    def library(self) -> str:
        """What loads a saved model, by the name that model hubs have for it."""
        ...

    @property
    def distributions(self) -> tuple[str, ...]:
        """Packages whose versions belong to a result; those that are not installed are left out."""
        ...

    @property
    def references(self) -> References | None:
        """Of a family that publishes models in a way of its own, such as `open_clip:ARCH/TAG`."""
        ...

    @property
    def folder_format(self) -> str:
        """What a folder of the family holds, in a few words that end `no model in FOLDER; it would hold ...`."""
        ...

    @property
    def hub_patterns(self) -> tuple[str, ...]:
        """Files of a model hub's repository that make such a folder: no pickles, no code."""
        ...

    @property
    def weights_note(self) -> str:
        """A model card's sentence on how the weights of a saved model lie; it goes on after a semicolon."""
        ...

    @property
    def baseline(self) -> str:
        """What a card calls the target's accuracy before the transfer."""
        ...

    def recognises(self, folder: Path) -> bool:
        """Whether a folder holds a model of this family; looks at names of files and JSON only."""
        ...

    def find_folder(self, ref: str, folder: Path, allow_pickle: bool) -> ModelFiles:
        """Finds a model's files in a folder that was recognised.

        Raises:
            CheckpointError: If files are missing or damaged.
        """
        ...

    def load(self, files: ModelFiles, device: Any) -> "Model":
        """Loads a model in float32, frozen, in eval mode.

        Arguments:
            device: A `torch.device` or its name.

        Raises:
            CheckpointError: If the weights are damaged, not finite, or do not fit the configuration.
        """
        ...

    def save(self, model: Any, files: ModelFiles, folder: Path) -> None:
        """Writes a model of `load` at its present weights, with configuration and tokenizer, so that the family's own
        library loads it from the folder, and `find_folder` finds it there.

        Arguments:
            files: What the model was loaded from.
            folder: Is there; files of the same names are replaced.
        """
        ...


FAMILIES: dict[str, Family] = {family.name: family for family in (CLIP, T5, ENCODER, DECODER)}
"""By name; in this order a folder is offered to them."""

_loaded: set[str] = set()


def register(family: Any) -> None:
    """Adds a `Family`, or replaces the one of its name.

    Arguments:
        family: What a package names as one; whether it is one is looked at here.

    Raises:
        ConfigError: If it lacks a member of `Family`, or its scheme is taken.
    """
    if not isinstance(family, Family):
        lacks = [name for name in vars(Family) if not name.startswith("_") and not hasattr(family, name)]
        raise ConfigError(
            f"{family!r} is no family of models: it lacks {', '.join(lacks)} (bico.models.families.Family)."
        )
    own = family.references
    others = [other.references for other in FAMILIES.values() if other.name != family.name and other.references]
    if own is not None and own.scheme in {ZOO, HUB, *HUB_TOO, LOCAL_TOO, *(other.scheme for other in others)}:
        raise ConfigError(f"Family {family.name!r}: the scheme {own.scheme!r} is taken; choose another.")
    FAMILIES[family.name] = family


def families() -> tuple[Family, ...]:
    """All families, those of installed packages among them.

    Raises:
        ConfigError: If a package's family cannot be imported, or is none.
    """
    for point in entry_points(group=GROUP):
        if point.value in _loaded:
            continue
        try:
            family = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"The model family {point.name!r} ({point.value}) cannot be imported: {one_line(error)}. Mend or "
                "uninstall the package that brings it."
            ) from error
        register(family)
        _loaded.add(point.value)
    return tuple(FAMILIES.values())


def get_family(name: str) -> Family:
    """Returns a family by its name.

    Raises:
        ConfigError: If there is none.
    """
    known = {family.name: family for family in families()}
    if name not in known:
        raise ConfigError(f"There is no model family {name!r}: {nearest(name, known)}")
    return known[name]


def references_of(scheme: str) -> References | None:
    """The references that begin with a scheme, of whatever family; None if no family has it."""
    found = (family.references for family in families())
    return next((own for own in found if own is not None and own.scheme == scheme), None)


def recognised(folder: Path) -> Family | None:
    """The family of the model in a folder; None if it holds none that is known."""
    return next((family for family in families() if family.recognises(folder)), None)


def find_folder(ref: str, folder: Path, allow_pickle: bool = False) -> ModelFiles:
    """Finds a model's files in a folder, whatever its family.

    Raises:
        CheckpointError: If no family knows what is there, or files are missing or damaged.
    """
    refuse_adapter(folder)
    family = recognised(folder)
    if family is None:
        formats = ", or ".join(family.folder_format for family in families())
        raise CheckpointError(f"{ref}: no model in {folder}{_kind_of(folder)}; it would hold {formats}.")
    return family.find_folder(ref, folder, allow_pickle)


def _kind_of(folder: Path) -> str:
    """What a folder's configuration says that it is, for a message."""
    try:
        return f" that is served: its config.json is of type {json.loads((folder / 'config.json').read_text())['model_type']!r}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def look_at(ref: str, allow_pickle: bool = False) -> ModelFiles | None:
    """Finds the files of a reference that is a folder here, and refuses a pickle that it names; all from names and first
    bytes, before a family's library is imported. None of references of other kinds.

    Raises:
        CheckpointError: As `find_folder` does, or if a pickle is not allowed.
    """
    scheme, _, rest = ref.partition(":")
    if references_of(scheme) is not None:
        if (named := Path(rest.partition("/")[2]).expanduser()).is_file():
            refuse_pickle(named, allow_pickle)
        return None
    folder = Path(rest if scheme == LOCAL_TOO else ref).expanduser()
    return find_folder(ref, folder, allow_pickle) if folder.is_dir() or scheme == LOCAL_TOO else None


def find_weights(place: str | Path, allow_pickle: bool = False) -> WeightFiles:
    """Finds the files of weights at a place, of whatever family; raises like `weight_files`."""
    own = [stem for family in families() for stem in getattr(family, "weight_stems", ())]
    for family in families():
        place = family.weights_folder(Path(place)) if hasattr(family, "weights_folder") else place
    return weight_files(place, allow_pickle, tuple(dict.fromkeys([*own, *USUAL])))


def foreign_namings(family: str, parameters: Iterable[str]) -> "tuple[Naming, ...]":
    """How other libraries call the parameters of a family's model; nothing of a family that does not say.

    Arguments:
        parameters: The model's own names.
    """
    said = getattr(get_family(family), "namings", None)
    return () if said is None else tuple(said(parameters))


def hub_patterns() -> list[str]:
    """What is fetched of a hub's repository before it is known whose model it holds."""
    own = (pattern for family in families() for pattern in family.hub_patterns)
    return list(dict.fromkeys([*own, HEAD_FILE, CLASSES_FILE]))


def schemes() -> set[str]:
    """What references may begin with, but for folders: of the zoo, and of the families in the table."""
    return {ZOO, *HUB_TOO, LOCAL_TOO} | {family.references.scheme for family in FAMILIES.values() if family.references}


def spellings(among: Iterable[Family] = FAMILIES.values()) -> str:
    """How a model can be named, in one line for help texts.

    Example:
        >>> spellings()
        'zoo:NAME, open_clip:ARCH/TAG, hf:OWNER/NAME[@REVISION] or a folder'
    """
    own = [family.references.spelling for family in among if family.references]
    return ", ".join([f"{ZOO}:NAME", *own, f"{HUB}:OWNER/NAME[@REVISION]"]) + " or a folder"
