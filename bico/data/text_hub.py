"""The paper's five language data sets, at pinned revisions on the Hugging Face hub (BiCo, table 2).

GLUE keeps the labels of its test splits to itself, so its validation splits are measured on; of MNLI the matched one.
Revisions are the repositories' conversions to parquet as other projects pin them.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bico.data.base import Split, Task
from bico.data.folders import SizesOf, read_folder, text_task
from bico.data.hub import PREFIX, check_published, fetch
from bico.data.reading import NOTHING_SAID, Reading, read_task_file
from bico.data.text import FORMS, Form


@dataclass(frozen=True)
class TextHubTask:
    """Where a data set lies on the hub."""

    folder: str
    test: str = "validation"
    """The split to measure on."""
    repo: str = "nyu-mll/glue"
    revision: str = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    form: Form | None = None
    """How its examples are put; that of its name in `text.FORMS` unless given."""

    @property
    def files(self) -> list[str]:
        return [f"{self.folder}/{split}-*.parquet" for split in ("train", self.test)]


TEXT_HUB: dict[str, TextHubTask] = {
    "mnli": TextHubTask("mnli", "validation_matched"),
    "qnli": TextHubTask("qnli"),
    "rte": TextHubTask("rte"),
    "qqp": TextHubTask("qqp"),
    "snli": TextHubTask("plain_text", "test", "stanfordnlp/snli", "cdb5c3d5eed6ead6e5a341c8e56e669bb666725b"),
}
"""In the order of the paper."""


@cache
def from_text_hub(name: str, copy: Path | None = None, reading: Reading = NOTHING_SAID) -> Task:
    """A language task of the paper; its texts come from the hub, or from a local copy.

    Arguments:
        name: One of `TEXT_HUB`.
        copy: A folder with the data set's files, in any format that `folders` reads; its split to measure on may be
            called `test` as well.
        reading: What options say of the copy.

    Raises:
        UnknownTaskError: If the copy lacks files or columns.
        DataError: If the copy's classes are not the data set's. Opening a split raises it too, and where the hub cannot
            be reached.
    """
    spec = TEXT_HUB[name]

    @cache
    def opened() -> Task:
        said = Reading() if copy is None else reading.over(read_task_file(copy))
        check_published(said, name)
        folder = copy or fetch(name, spec.repo, spec.revision, spec.files) / spec.folder
        form = spec.form or FORMS[name]
        names = (("train",), tuple(dict.fromkeys([spec.test, "test"])))
        table = read_folder(folder, said, names, form.columns, where=f"{PREFIX}{name}: {folder}")
        return text_task(name, table, form)

    if copy is not None:  # known by its content: nothing tells which revision it was
        return opened()

    def open_split(split: str) -> Split:
        return opened().open(split)

    form, revision = spec.form or FORMS[name], f"{spec.repo}/{spec.folder}@{spec.revision}"
    return Task(
        name, form.answers or form.labels, (form.prompt,), revision, SizesOf(open_split), open_split, modality="text"
    )
