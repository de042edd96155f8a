"""How text tasks are posed to a text-to-text model: the prompt that an example becomes, and the words of each class.

The forms are T5's own where it was trained on the task (Raffel et al., 2020, arXiv:1910.10683, appendix D); the others
follow them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bico.errors import DataError

PAIRS = ("sentence1", "sentence2"), ("premise", "hypothesis")


@dataclass(frozen=True)
class Form:
    """What one task's examples and classes are called; columns by any of several names."""

    prompt: str
    """With `{0}` and `{1}` for the columns."""
    columns: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    """Of the data set, in its order."""
    answers: tuple[str, ...] = ()
    """What the model is to answer; the labels, unless given."""


_NLI = ("entailment", "neutral", "contradiction")
_TOPICS = ("abbreviation", "description", "entity", "human", "location", "number")
FORMS: dict[str, Form] = {
    "mnli": Form("mnli hypothesis: {1} premise: {0}", (("premise", "hypothesis"),), _NLI),
    "snli": Form("snli hypothesis: {1} premise: {0}", (("premise", "hypothesis"),), _NLI),
    "qnli": Form("qnli question: {0} sentence: {1}", (("question", "sentence"),), ("entailment", "not_entailment")),
    "rte": Form("rte sentence1: {0} sentence2: {1}", PAIRS, ("entailment", "not_entailment")),
    "qqp": Form("qqp question1: {0} question2: {1}", (("question1", "question2"),), ("not_duplicate", "duplicate")),
    "mrpc": Form("mrpc sentence1: {0} sentence2: {1}", PAIRS, ("not_equivalent", "equivalent")),
    "trec": Form("trec question: {0}", (("text",),), ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"), _TOPICS),
    "subj": Form("subj sentence: {0}", (("text",),), ("objective", "subjective")),
}


class Text(str):
    """An example put to a text-to-text model, which knows the texts that it is made of: encoders read these."""

    parts: tuple[str, ...]

    def __new__(cls, put: str, parts: tuple[str, ...]) -> "Text":
        made = super().__new__(cls, put)
        made.parts = parts
        return made


@dataclass(frozen=True)
class Pair:
    """Two texts that are encoded each by itself."""

    first: str
    second: str


@dataclass(frozen=True)
class Completion:
    """A text that is to be completed, and by what; the two are one text, with nothing put between them."""

    prompt: str
    completion: str
    closed: bool = True
    """Whether the text ends there, which is to be told, too; plain text may go on."""

    @property
    def answer(self) -> str | None:
        """What is to be written."""
        return self.completion

    def answered(self, answer: str) -> "Completion":
        """The same with another answer."""
        return replace(self, completion=answer)


@dataclass(frozen=True)
class Chat:
    """Messages of several; what the assistant says is to be written."""

    turns: tuple[tuple[str, str], ...]
    """Roles and contents."""

    @property
    def answer(self) -> str | None:
        """What is to be written, where it is the last message alone."""
        alone = [role for role, _ in self.turns].count("assistant") == 1 and self.turns[-1][0] == "assistant"
        return self.turns[-1][1] if alone else None

    def answered(self, answer: str) -> "Chat":
        """The same with another last message."""
        return Chat((*self.turns[:-1], (self.turns[-1][0], answer)))


@dataclass(frozen=True)
class Posed:
    """A form that fits one table."""

    prompt: str
    columns: tuple[str, ...]
    answers: tuple[str, ...]

    def put(self, row: Mapping[str, Any]) -> Text:
        """What the model reads for one row."""
        parts = tuple(str(row[column]) for column in self.columns)
        return Text(self.prompt.format(*parts), parts)


def form_of(
    name: str, columns: Sequence[str], labels: Sequence[str], where: str, form: Form | None = None, named: bool = False
) -> Posed:
    """Returns how a table's rows are put and answered; of a task that is not in `FORMS`, by the table's own names.

    Arguments:
        columns: The table's columns of text, in the order of the form.
        labels: The names of its classes.
        where: How messages call it.
        form: In place of that of the name.
        named: Whether the classes were given their names by the user: then these are the answers.

    Raises:
        DataError: If the classes are others than the form's, or in another order.

    Example:
        >>> form = form_of("colours", ["a", "b"], ["light_blue", "red"], "here")
        >>> form.put({"a": "sky", "b": "sea"}), form.answers
        ('colours a: sky b: sea', ('light_blue', 'red'))
    """
    form = form or FORMS.get(name)
    if form is not None and len(columns) != len(form.columns[0]):  # columns that the user named
        form = None
    if form is None:
        shown = [f"{_escaped(column)}: {{{n}}}" for n, column in enumerate(columns)]
        return Posed(" ".join([_escaped(name), *shown]), tuple(columns), tuple(labels))
    if [label.lower() for label in labels] != [label.lower() for label in form.labels]:
        if named:
            return Posed(form.prompt, tuple(columns), tuple(labels))
        raise DataError(
            f"{where}: {name} has the classes {', '.join(form.labels)}, in this order; here they are {', '.join(labels)}. "
            "Give the folder another name to have it taken as it is, or say what its classes are by class_names in task.yaml."
        )
    return Posed(form.prompt, tuple(columns), form.answers or form.labels)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
