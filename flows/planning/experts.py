"""Which experts are carried, for which tasks, and what their rows are called where a task has several.

Maps do not depend on the expert, so experts of one task share its calibration. Rows, models and cards of each are told apart
by the task's name and the expert's, such as "digits@late".
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bico.errors import ConfigError, at_home, nearest


@dataclass(frozen=True)
class Carried:
    """What one column of results is about."""

    task: str
    expert: Path | None = None
    """None where the source is fine-tuned in the run."""


def spelt(value: Any) -> Any:
    """Experts by task, as YAML can hold them, spelt as on the command line.

    Example:
        >>> spelt({"digits": ["a.pt", "b.pt"], "lamps": "c.pt"})
        ['digits=a.pt', 'digits=b.pt', 'lamps=c.pt']
    """
    if not isinstance(value, dict):
        return [str(value)] if isinstance(value, Path) else [value] if isinstance(value, str) else value
    several = {task: found if isinstance(found, list) else [found] for task, found in value.items()}
    return [f"{task}={file}" for task, files in several.items() for file in files]


def parse(text: str) -> tuple[str | None, Path]:
    """The task that an expert is said to be of, if one is said, and its file or folder. A path may have an equals sign too:
    no task does in whose name is a slash, and a path that is there is one.

    Example:
        >>> parse("digits=runs/lr=1/best.pt"), parse("runs/lr=1/best.pt")
        (('digits', PosixPath('runs/lr=1/best.pt')), (None, PosixPath('runs/lr=1/best.pt')))
    """
    task, sign, path = text.partition("=")
    if not sign or not path or not task.strip() or re.search(r"[/\\]", task) or at_home(Path(text)).exists():
        return None, at_home(Path(text))
    return task.strip(), at_home(Path(path))


def tasks_named(experts: Sequence[str]) -> list[str]:
    """The tasks that experts name; nothing unless all of them do."""
    found = [task for task, _ in map(parse, experts)]
    return list(dict.fromkeys(task for task in found if task is not None)) if None not in found else []


def carried(tasks: Sequence[str], experts: Sequence[str]) -> dict[str, Carried]:
    """What is carried, by the name of its rows, in the order of the tasks: a task's name, or where there are several experts
    of it, that and the expert's.

    Raises:
        ConfigError: If it is not clear of which task an expert is, a task is left without one, or one is given twice.
    """
    if not experts:
        return {task: Carried(task) for task in tasks}
    of: dict[str, list[Path]] = {task: [] for task in tasks}
    for text in experts:
        named, path = parse(text)
        if named is None and len(tasks) > 1:
            raise ConfigError(
                f"--expert {text} is an expert for one task, but {len(tasks)} tasks were given: {', '.join(tasks)}; say "
                "--expert TASK=FILE."
            )
        task = tasks[0] if named is None else named
        if task not in of:
            raise ConfigError(f"--expert {text}: {task!r} is none of the tasks; {nearest(task, tasks)}")
        if path in of[task]:
            raise ConfigError(f"--expert {text} is given twice: leave one out.")
        of[task].append(path)
    if bare := [task for task, paths in of.items() if not paths]:
        raise ConfigError(
            f"Task {bare[0]!r} has no expert, and others have: give --expert {bare[0]}=FILE, or leave the task out."
        )
    return {
        name: Carried(task, path)
        for task, paths in of.items()
        for name, path in zip(_names(task, paths), paths, strict=True)
    }


def _names(task: str, paths: Sequence[Path]) -> Iterator[str]:
    """Names of rows: by the files' names, and as many of the folders above them as tell all apart."""
    if len(paths) == 1:
        yield task
        return
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = [_label(path, depth) for path in paths]
        if max(Counter(labels).values()) == 1:
            break
    else:  # that differ in signs only which no name of a file may have
        labels = [f"{label}-{number}" for number, label in enumerate(labels, start=1)]
    yield from (f"{task}@{label}" for label in labels)


def _label(path: Path, depth: int) -> str:
    """The last parts of a path as a name that files can have.

    Example:
        >>> _label(Path("runs/seed 1/best.safetensors"), 2)
        'seed-1-best'
    """
    parts = [*path.parts[:-1], path.stem if path.suffix in _ENDINGS else path.name][-depth:]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-.") or "expert"


_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def told(found: Mapping[str, Carried]) -> str:
    """Experts by the rows that they give, for people.

    Example:
        >>> told({"digits": Carried("digits", Path("x/a.pt")), "lamps": Carried("lamps", Path("b.pt"))})
        'digits=x/a.pt, lamps=b.pt'
    """
    return ", ".join(f"{name}={shown(one.expert)}" for name, one in found.items() if one.expert is not None)


def shown(path: Path) -> str:
    """A file with the folder that it lies in, which often tells more.

    Example:
        >>> shown(Path("runs/birds/best.pt")), shown(Path("e.pt"))
        ('birds/best.pt', 'e.pt')
    """
    return f"{path.parent.name}/{path.name}".removeprefix("/")


def files_of(found: Iterable[Carried]) -> list[Path]:
    """The experts' files and folders, each once."""
    return list(dict.fromkeys(one.expert for one in found if one.expert is not None))
