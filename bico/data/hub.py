"""The eight vision data sets of the paper, at pinned revisions on the Hugging Face hub.

Nothing is downloaded before a split is opened, and then only the files of `train` and `test`. Class names and prompts
are the benchmark's (`vision8`), so that results mean the same wherever the pictures came from.

The repositories are those of the benchmark's usual loaders (FusionBench; METHODS of the compared papers). Revisions are
the commits that converted each of them to parquet; columns, splits and the order of the classes are as their pages show
them, and are checked again when a data set is opened.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from bico.data.base import Split, Task
from bico.data.class_lists import PUBLISHED, in_published_order
from bico.data.folders import SPLITS, SizesOf, Table, open_pictures, read_folder
from bico.data.reading import NOTHING_SAID, Reading, read_task_file
from bico.data.vision8 import CLASS_NAMES, PROMPTS
from bico.errors import ConfigError, DataError, UnknownTaskError, nearest, one_line

PREFIX = "hub:"


@dataclass(frozen=True)
class HubTask:
    """Where a data set lies on the hub. All of these have the splits `train` and `test`."""

    repo: str
    revision: str
    """A commit of the repository, 40 hexadecimal digits: its files can never change."""
    folder: str = "data"
    """Where the repository keeps the files, named after the configuration if there are several."""
    image: str = "image"
    label: str = "label"
    class_names: tuple[str, ...] = ()
    """In the order of its labels, as prompts say them; those of the eight-task benchmark (`vision8`) unless given."""
    prompts: tuple[str, ...] = ()
    """Templates with one `{}` for the class name; likewise."""

    @property
    def files(self) -> list[str]:
        return [f"{self.folder}/{split}-*.parquet" for split in SPLITS]


HUB: dict[str, HubTask] = {
    "eurosat": HubTask("tanganke/eurosat", "43750fc422c7fbd4289e2df3f7473617a5937acc"),
    "gtsrb": HubTask("tanganke/gtsrb", "ea889fff70dda7b09e94a4b207dded438deca549"),
    "svhn": HubTask("ufldl-stanford/svhn", "f9e1717d73324ebbc1ece84267ccd80d0aca0690", folder="cropped_digits"),
    "resisc45": HubTask("tanganke/resisc45", "5c484982a196dcb501b8e79c6cf4680dc6f2ccdf"),
    "dtd": HubTask("tanganke/dtd", "d2afa97d9f335b1a6b3b09c637aef667f98f966e"),
    "cars": HubTask("tanganke/stanford_cars", "9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40"),
    "mnist": HubTask("ylecun/mnist", "77f3279092a1c1579b2250db8eafed0ad422088c", folder="mnist"),
    "sun397": HubTask("tanganke/sun397", "9c4afd6174afa3974f209a0ef099dbbe244dfd27"),
}
"""In the order of the paper's tables. A data set more is an entry more, with its class names and prompts."""


def names_of(name: str) -> tuple[str, ...]:
    """The class names of a data set of `HUB`."""
    return HUB[name].class_names or CLASS_NAMES[name]


@cache
def from_hub(name: str, copy: Path | None = None, reading: Reading = NOTHING_SAID) -> Task:
    """A task of the benchmark; its pictures come from the hub, or from a local copy.

    Arguments:
        name: One of `HUB`.
        copy: A folder with the data set's files, in any format that `folders` reads.
        reading: What options say of the copy.

    Raises:
        UnknownTaskError: If the benchmark has no such task, or the copy lacks files or columns.
        ConfigError: If the copy is to have names, prompts or splits of its own.
        DataError: If the copy's classes are not the benchmark's, or a picture cannot be read. Opening a split raises it
            too, and where the hub cannot be reached.
    """
    if name not in HUB:
        raise UnknownTaskError(f"Unknown data set {PREFIX}{name}: {nearest(name, HUB)}")
    spec, names = HUB[name], names_of(name)
    prompts = spec.prompts or PROMPTS[name]
    if copy is not None:  # known by its content: nothing tells which revision it was
        table = _benchmark_table(name, copy, reading.over(read_task_file(copy)))
        opened, seen = open_pictures(table)
        about = table.about | seen
        return Task(name, names, prompts, table.digest, table.sizes, opened, about=about, notes=table.notes)

    @cache
    def open_split(split: str) -> Split:
        columns = Reading(image_column=spec.image, label_column=spec.label)
        return open_pictures(_benchmark_table(name, download(name), columns))[0](split)

    return Task(name, names, prompts, f"{spec.repo}/{spec.folder}@{spec.revision}", SizesOf(open_split), open_split)


def check_published(reading: Reading, name: str, classes: bool = False) -> None:
    """Raises ConfigError if a published data set is to have prompts or splits of its own.

    Arguments:
        classes: Whether it may say how its copy calls the classes.
    """
    own: list[str] = [key for key in ("prompts", "test_share", "test_split") if key in reading.said]
    own += ["class_names"] * bool(reading.listed or (reading.class_names and not classes))
    if own:
        raise ConfigError(
            f"{PREFIX}{name} has the benchmark's own prompts, classes and splits, so {own[0]} says nothing there: name the task "
            f"{name}, without {PREFIX!r}."
        )


def _benchmark_table(name: str, folder: Path, reading: Reading) -> Table:
    """Reads a copy and puts its classes into the benchmark's order."""
    check_published(reading, name, classes=True)
    table = read_folder(folder, reading, where=f"{PREFIX}{name}: {folder}")
    if table.columns.image is None:
        raise UnknownTaskError(f"{PREFIX}{name}: {folder} holds no pictures but {', '.join(table.columns.texts)}.")
    labels = in_published_order(table.labels, names_of(name), PUBLISHED.get(name, ()), table.where)
    return replace(table, labels=labels)


def download(name: str) -> Path:
    """Fetches a data set of `HUB`: `fetch`."""
    spec = HUB[name]
    return fetch(name, spec.repo, spec.revision, spec.files)


def fetch(name: str, repo: str, revision: str, files: list[str]) -> Path:
    """Fetches a data set's files, unless the hub client's cache has them, and returns their folder.

    Raises:
        DataError: If they are neither there nor to be had.
    """
    import huggingface_hub  # slow to import, and only needed here

    try:
        found = huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=files)
    except Exception as error:  # whatever the hub client raises where there is no network, no room or no such commit
        reason = one_line(error, 200)
        raise DataError(
            f"{PREFIX}{name}: {repo} at {revision[:7]} cannot be downloaded ({reason}): give a local copy by "
            f"--data FOLDER/{name}, with train.parquet and test.parquet or as `datasets` downloads or saves it."
        ) from error
    return Path(found)
