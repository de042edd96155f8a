"""Recipes: one file per table or figure of the paper, on the real models and in miniature.

Both sides share the transfers' settings (methods, budgets, seeds); each adds its own pair and tasks. The miniature has
therefore the structure of the real experiment, by construction.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bico.data.folders import task_name
from bico.data.hub import PREFIX
from bico.data.tasks import EMBEDDED, get_task
from bico.errors import BicoError, ConfigError, nearest
from bico.linalg.procrustes import ALL
from bico.methods.spec import Spec
from flows.config import CONFIGS, MethodSpec, TransferConfig, make_config
from flows.validation import read_yaml, validated

REPRODUCE = CONFIGS / "reproduce"
PAPER_TASKS = {
    "picture": ("eurosat", "gtsrb", "svhn", "resisc45", "dtd", "cars", "mnist", "sun397"),
    "text": ("mnli", "qnli", "rte", "qqp", "snli"),
}
"""By what they show, the tasks of the paper, in the order of its tables."""


class PaperRow(BaseModel):
    """One row of the paper's table."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: MethodSpec
    """As in our rows."""
    samples: int = 0
    transfer: str | None = None
    """The transfer that it belongs to; without it, all."""
    values: Annotated[list[float], Field(min_length=1)] | None = None
    """Accuracies in percent, in the order of the real side's tasks."""
    average: float
    """As printed."""
    sd: float | None = None
    """Over seeds, as printed."""
    doubt: str | None = None
    """Why the row is no reference."""

    @property
    def recomputed(self) -> float:
        """The average of the values; what is printed, where there are none."""
        return self.average if self.values is None else round(statistics.fmean(self.values), 2)

    @property
    def misprinted(self) -> bool:
        """Whether the printed average is not that of the printed values (beyond rounding)."""
        return abs(self.recomputed - self.average) > 0.015


class Recipe(BaseModel):
    """A table or figure: what the paper claims, how to make it on each side, and the paper's numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    title: str
    claim: str = ""
    """What the paper says that it shows."""
    note: str = ""
    """How the miniature stands for the real experiment, and other decisions."""
    kind: Literal["table", "figure"] = "table"
    shows: Literal["picture", "text"] = "picture"
    """What its tasks are made of."""
    figure: str | None = None
    """For a figure: its name in `flows.figures.FIGURES`."""
    shared: dict[str, Any] = {}
    """Settings of every transfer, on both sides."""
    transfers: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """What each transfer adds to them, by its title."""
    real: dict[str, Any] | None = None
    """The published pair, its tasks and what else only this side has."""
    mini: dict[str, Any] | None = None
    """The same on the embedded zoo."""
    paper: list[PaperRow] = []

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "figure") != (self.figure is not None):
            raise ValueError("`figure: NAME` goes with `kind: figure`, and only with it")
        if self.real is None and self.mini is None:
            raise ValueError("needs `real` or `mini`, or both")
        count = len(PAPER_TASKS[self.shows])
        for index, row in enumerate(self.paper):
            if row.values is not None and len(row.values) != count:
                raise ValueError(f"paper.{index}.values: {len(row.values)} of {count} tasks")
        if strange := {row.transfer for row in self.paper} - {None, *self.transfers}:
            raise ValueError(f"paper: no transfer is called {strange.pop()!r}; {nearest('', self.transfers)}")
        return self

    @property
    def sides(self) -> list[str]:
        return [name for name in ("real", "mini") if getattr(self, name) is not None]

    def label(self, mini: bool) -> str:
        """The name of what it writes."""
        return f"{self.id}-mini" if mini else self.id

    def configs(self, mini: bool, data: Sequence[Path] = (), out: Path = Path("out")) -> dict[str, TransferConfig]:
        """The transfers of one side, by title.

        Arguments:
            data: Folders of tasks. In miniature, listed tasks without a folder are left out and other folders join
                in; on the real side a folder is the local copy of the data set that it is named after.
            out: Where each transfer leaves its own results.

        Raises:
            ConfigError: If there is no such side, a setting is not valid, or a folder belongs to no task.
        """
        name = "mini" if mini else "real"
        side = self.mini if mini else self.real
        if side is None:
            raise ConfigError(f"{self.id} has no {name} side: {'leave out' if mini else 'add'} --mini.")
        tasks = self.tasks(mini, data)
        serving = {task.removeprefix(PREFIX) for task in tasks}
        side = side | {"tasks": tasks, "data": [f for f in data if task_name(f.resolve()) in serving]}
        if not side["tasks"]:
            raise ConfigError(
                f"{self.id}, {name}: none of its tasks is at hand; give folders of {', '.join(self.left_out(mini, data))} "
                "by --data."
            )
        # As the paper has them, maps keep all directions; of real models that would be hundreds of gigabytes.
        whole = {"rank": ALL} if mini else {}
        return {
            title: make_config(
                {"export": "none", "baselines": False, **whole, "out": out / self.label(mini) / title}
                | side
                | self.shared
                | own,
                f"recipe {self.id}, {name}, {title}",
            )
            for title, own in self.transfers.items()
        }

    def with_baselines(self) -> Self:
        """The same, with rows that the paper has not: what a transfer has to beat at the same data."""
        return self.model_copy(update={"shared": self.shared | {"baselines": True}})

    def tasks(self, mini: bool, data: Sequence[Path]) -> list[str]:
        """The tasks of a side that are at hand, and those that join in: `configs`."""
        side = (self.mini if mini else self.real) or {}
        return chosen_tasks(self.id, side.get("tasks", []), data, mini, self.shows)

    def left_out(self, mini: bool, data: Sequence[Path]) -> list[str]:
        """The tasks of a side that need a folder which was not given."""
        side = (self.mini if mini else self.real) or {}
        return [task for task in side.get("tasks", []) if not _at_hand(task, data)]

    def paper_rows(self, transfer: str) -> dict[tuple[Spec, int], PaperRow]:
        """The paper's rows of one transfer, by (method, samples)."""
        return {(row.method, row.samples): row for row in self.paper if row.transfer in (None, transfer)}


def chosen_tasks(recipe: str, listed: Sequence[str], data: Sequence[Path], mini: bool, shows: str) -> list[str]:
    names = [folder.resolve().name for folder in data if not _of_another_kind(folder, shows)]
    known = {task.removeprefix(PREFIX) for task in listed}
    if not mini and (strange := [name for name in names if name not in known]):
        raise ConfigError(
            f"--data {strange[0]}: {recipe} has no such task; {nearest(strange[0], known)} A local copy of a data set "
            "goes by its name."
        )
    extra = [name for name in names if name not in known]
    return [task for task in listed if _at_hand(task, data)] + extra


def _of_another_kind(folder: Path, shows: str) -> bool:
    """Whether a folder holds texts where pictures are asked for, or the reverse: it is meant for another recipe."""
    try:
        return get_task(folder.resolve().name, [folder]).modality != shows
    except BicoError:  # the plan will say what is wrong with it
        return False


def _at_hand(task: str, data: Sequence[Path]) -> bool:
    return task.startswith(PREFIX) or task in EMBEDDED or task in {folder.resolve().name for folder in data}


def list_recipes() -> list[str]:
    """Returns the ids of all recipes: tables first, numbers before letters."""
    names = [path.stem for path in REPRODUCE.glob("*.yaml")]
    return sorted(names, key=lambda name: (name.startswith("figure"), name))


def read_recipe(name: str) -> Recipe:
    """Reads a recipe by its id.

    Raises:
        ConfigError: If there is none of that name, or it has an unknown key or a setting that is not valid.
    """
    path = REPRODUCE / f"{name}.yaml"
    if name not in list_recipes():
        raise ConfigError(f"Unknown recipe {name!r}: {nearest(name, [*list_recipes(), 'all'])}")
    return validated(Recipe, {"id": name} | read_yaml(path), f"configs/reproduce/{path.name}")
