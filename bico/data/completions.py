"""Tasks of texts that are completed, from folders: prompts and completions, chats, or plain text."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bico.data.base import Split, Task
from bico.data.columns import string_columns
from bico.data.folders import task_name
from bico.data.reading import NOTHING_SAID, Reading, read_task_file
from bico.data.text import Chat, Completion
from bico.data.without_classes import read_rows, task_named
from bico.errors import ConfigError, DataError, UnknownTaskError

if TYPE_CHECKING:
    from datasets import Dataset

ANSWERED = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("input", "output"))
"""Columns of a prompt and its completion, by names that they often have."""
CHATS, TEXT = ("messages",), ("text",)
ROLES = ("system", "user", "assistant", "tool", "developer")
LONGEST_CHAT = 200
"""Messages of a chat: places of tokens have room for this many texts (`bico.models.places`)."""
LABELS = 64
"""As many different completions at most are answers to choose from, if each is there twice on the average or more."""
_PARTS = 2


@dataclass(frozen=True)
class CompletionColumns:
    """What each column is for."""

    names: tuple[str, ...]
    """Prompt and completion; or one, of chats or of text."""
    chats: bool = False


@cache
def completions_from_folder(folder: Path, reading: Reading = NOTHING_SAID) -> Task:
    """A task of texts that are completed. Where completions are few, they are its classes, and labels say which; else it has
    no classes, and labels are rows.

    Arguments:
        reading: What options say; it wins over the folder's `task.yaml`. Of the text columns there are two, prompt and
            completion, or one.

    Raises:
        UnknownTaskError: If files or columns are missing, or nothing says which to take.
        DataError: If a file is damaged, or a row lacks its completion.
        ConfigError: If something is said that completions have not.
    """
    reading, where, name = reading.over(read_task_file(folder)), f"--data {folder}", task_name(folder)
    if said := {"image_column", "label_column", "prompts", "class_names"} & set(reading.said):
        raise ConfigError(
            f"{where}: loss=completion reads what is to be completed, and by what: leave out {min(said)}."
        )
    read = read_rows(folder, reading, where, find_completion_columns, _rows)
    rows = read.of
    answers = answers_of(rows)
    about = {"completions": list(read.columns.names)} | read.about
    sizes = {split: len(part) for split, part in rows.items()}

    def opened(split: str) -> Split:
        return Split(_labels(rows[split], answers), lambda index: rows[split][index])

    notes = tuple(filter(None, (read.note, _joined(rows["train"], where))))
    return Task(name, answers, (), read.digest, sizes, opened, "text", about, notes)


def find_completion_columns(table: "Dataset", reading: Reading, where: str) -> CompletionColumns:
    """Finds the columns of prompts and completions, of chats, or of text.

    Raises:
        UnknownTaskError: If there are none, or several may be it.
    """
    listed, strings = list(table.features), set(string_columns(table))
    for named in reading.text_columns:
        if named not in listed:
            raise UnknownTaskError(f"{where}: no column is called {named!r}; there are {listed}.")
    if reading.text_columns:
        found = [reading.text_columns]
    else:
        found = [names for names in ANSWERED if set(names) <= strings]
        found = found or [names for names in (CHATS, TEXT) if set(names) <= {*listed}]
    if len(found) != 1 or len(found[0]) > _PARTS:
        raise UnknownTaskError(
            f"{where}: loss=completion reads columns {' and '.join(ANSWERED[0])}, or `{CHATS[0]}`, or `{TEXT[0]}`, and here are "
            f"{listed}: name them by --text-columns, the prompt first, or one column of chats or texts."
        )
    (names,) = found
    if strange := [name for name in names if name not in strings and len(names) > 1]:
        raise UnknownTaskError(
            f"{where}: the column {strange[0]!r} holds no text; of chats give one column, with all messages."
        )
    return CompletionColumns(tuple(names), chats=names[0] not in strings)


Rows = list[Completion | Chat]


def _rows(table: "Dataset", columns: CompletionColumns, where: str) -> Rows:
    for column in columns.names:
        if column not in table.features:
            raise UnknownTaskError(f"{where} has no column {column!r}, but {list(table.features)}.")
    cells = zip(*(list(table[column][:]) for column in columns.names), strict=True)
    made = [_row(row, columns, f"{where}: row {number} (from 0)") for number, row in enumerate(cells)]
    if not made:
        raise DataError(f"{where} has no rows.")
    return made


def _row(cells: tuple[Any, ...], columns: CompletionColumns, where: str) -> Completion | Chat:
    if columns.chats:
        return _chat(cells[0], f"{where}, `{columns.names[0]}`")
    *before, written = (cell or "" for cell in cells)
    if not written.strip():
        raise DataError(f"{where} has nothing in `{columns.names[-1]}`: write its completion, or leave the row out.")
    return Completion(before[0], written) if before else Completion("", written, closed=False)


def _chat(messages: Any, where: str) -> Chat:
    whole = isinstance(messages, list) and messages and all(isinstance(one, Mapping) for one in messages)
    if not whole or len(messages) > LONGEST_CHAT:
        raise DataError(
            f'{where} is no list of up to {LONGEST_CHAT} messages such as {{"role": "user", "content": "…"}}: '
            f"{str(messages)[:40]!r}."
        )
    turns = []
    for place, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise DataError(
                f"{where}: message {place} (from 0) needs a role of {', '.join(ROLES)}, and a content of text; it has "
                f"{role!r} and {str(content)[:40]!r}."
            )
        turns.append((role, content))
    answers = [content for role, content in turns if role == "assistant"]
    if not answers or not all(answer.strip() for answer in answers):
        raise DataError(f"{where}: the assistant says nothing: write its answers, or leave the row out.")
    return Chat(tuple(turns))


def answers_of(rows: Mapping[str, Rows]) -> tuple[str, ...]:
    """The completions to choose from, in order of their letters; none where they are no few, or an example has several.

    Example:
        >>> answers_of({"train": [Completion("a", " no"), Completion("b", " yes")] * 2})
        (' no', ' yes')
        >>> answers_of({"train": [Completion("a", " no"), Completion("b", " yes")]})
        ()
    """
    counts = {split: [row.answer for row in part] for split, part in rows.items()}
    known = {answer for answer in counts["train"] if answer is not None}
    every = [answer for part in counts.values() for answer in part]
    plain = all(not isinstance(row, Completion) or row.closed for part in rows.values() for row in part)
    few = len(known) <= min(LABELS, len(counts["train"]) // 2)
    return tuple(sorted(known)) if plain and few and len(known) > 1 and {*every} <= known else ()


def _labels(rows: Rows, answers: tuple[str, ...]) -> Tensor:
    if not answers:
        return torch.arange(len(rows))
    return torch.tensor([answers.index(row.answer or "") for row in rows], dtype=torch.int64)


def _joined(rows: Rows, where: str) -> str:
    """What to say where prompts and completions are one word when they are put together."""
    together = sum(
        isinstance(row, Completion) and row.prompt[-1:].isalnum() and row.completion[:1].isalnum() for row in rows
    )
    if not together:
        return ""
    return (
        f"{where}: in {together} of {len(rows)} rows nothing stands between prompt and completion, and nothing is put there: "
        "let completions begin with a blank, if they are words of their own."
    )


def get_completions(name: str, folders: Mapping[str, Path], reading: Reading = NOTHING_SAID) -> Task:
    """Returns a task of completions by name.

    Arguments:
        folders: Folders of data by the names of their tasks.

    Raises:
        UnknownTaskError: If none is its.
    """
    return task_named(name, folders, reading, completions_from_folder, "completion", "prompts and completions")
