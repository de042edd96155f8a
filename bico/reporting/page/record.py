"""What a run leaves for its page, as plain values: enough to make the page again without models, data or store."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bico.calibration.budget import Budget
from bico.errors import ConfigError
from bico.last_steps.curve import StrengthCurve
from bico.methods.spec import Spec
from bico.reporting.block_report import BlockReport
from bico.reporting.choice import Choice
from bico.reporting.rows import Cell, Row

VERSION = 1
"""Of the file's form; raised when an older page maker could not read it."""


@dataclass(frozen=True)
class Written:
    """A model that was written."""

    folder: str
    """Its path from the page."""
    row: Row


@dataclass(frozen=True)
class Draw:
    """Calibration samples of one task and seed."""

    task: str
    sampling: str
    seed: int
    samples: tuple[int, ...]
    """The counts that were asked for."""
    drawn: int
    """Samples of the largest set."""
    shared_tokens: float | None = None
    """Of a pair with two tokenizers, the share of characters in tokens that both cut alike."""


@dataclass(frozen=True)
class RunRecord:
    """One finished transfer."""

    title: str
    source: str
    target: str
    rows: tuple[Row, ...]
    digests: Mapping[str, str] = field(default_factory=dict)
    """sha256 of what went in, by name."""
    measure: str = "accuracy"
    measured_by: str = "head"
    expert: str | None = None
    """Its name, if one was given; else the source was fine-tuned."""
    alpha: float = 1.0
    blocks: tuple[BlockReport, ...] = ()
    looked_into: Mapping[str, str] = field(default_factory=dict)
    """By task, the transfer that `blocks` are of."""
    curves: tuple[tuple[Cell, StrengthCurve], ...] = ()
    draws: tuple[Draw, ...] = ()
    choices: tuple[Choice, ...] = ()
    models: Mapping[str, Written] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What was taken for granted, as the plan told it."""
    command: str = ""
    """What repeats the run."""
    settings: str = ""
    """The run's configuration, as a file that repeats it."""
    stages: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Computed and cached, by stage."""
    expected: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the plan gave the stages to compute, by stage; empty where nothing was planned."""
    took: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the computed stages took, by stage."""
    phases: tuple[tuple[str, float], ...] = ()
    """What was done, and how many seconds it took, in order."""
    planned: Mapping[str, str] = field(default_factory=dict)
    """What the plan said it would cost, by quantity, for people; empty where nothing was planned."""
    measured: Mapping[str, str] = field(default_factory=dict)
    """The same as it came out."""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    finished: str = ""
    """UTC, ISO 8601."""
    identity: str = ""
    """Digest of all that determines the run."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Where else it can be looked at, by name."""

    def to_json(self) -> str:
        """As the text of a file."""
        plain = {key: value for key, value in vars(self).items() if key not in _NOT_PLAIN}
        special = {
            "rows": [row.record() for row in self.rows],
            "blocks": [asdict(block) for block in self.blocks],
            "curves": [_cell(cell) | asdict(curve) for cell, curve in self.curves],
            "draws": [asdict(draw) for draw in self.draws],
            "choices": [choice.to_json() for choice in self.choices],
            "models": {name: {"folder": m.folder} | m.row.record() for name, m in self.models.items()},
        }
        plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in plain.items()}
        return json.dumps({"bico_run": VERSION} | plain | special, indent=1, ensure_ascii=False)

    @classmethod
    def parse(cls, text: str, where: str) -> "RunRecord":
        """Reads what `to_json` gave.

        Arguments:
            where: How messages call the file.

        Raises:
            ConfigError: If the text is no record of a run, or of a later form.
        """
        try:
            found = json.loads(text)
            version = found.pop("bico_run")
            if version > VERSION:
                raise ConfigError(f"{where}: written by a later bico (form {version}): bring this one up to date.")
            found |= {
                "rows": tuple(map(Row.parse, found["rows"])),
                "blocks": tuple(BlockReport(**block) for block in found["blocks"]),
                "curves": tuple(map(_curve, found["curves"])),
                "draws": tuple(Draw(**one | {"samples": tuple(one["samples"])}) for one in found["draws"]),
                "choices": tuple(map(Choice.parse, found["choices"])),
                "models": {n: Written(m["folder"], Row.parse(m)) for n, m in found["models"].items()},
                "phases": tuple((name, seconds) for name, seconds in found["phases"]),
                "notes": tuple(found["notes"]),
            }
            return cls(**found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{where}: not the record of a run ({error!r}); run the transfer again.") from error


_NOT_PLAIN = ("rows", "blocks", "curves", "draws", "choices", "models")


def _cell(cell: Cell) -> dict[str, Any]:
    budget = {"samples": cell.budget.asked, "unlabelled": cell.budget.unlabelled}
    return {"task": cell.task, "method": str(cell.method), "seed": cell.seed} | budget


def _curve(found: dict[str, Any]) -> tuple[Cell, StrengthCurve]:
    budget = Budget(found["samples"], found["unlabelled"])
    cell = Cell(found["task"], Spec.parse(found["method"]), budget, found["seed"])
    return cell, StrengthCurve(tuple(found["strengths"]), tuple(found["losses"]), found["chosen"])
