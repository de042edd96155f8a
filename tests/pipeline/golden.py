"""What every cached stage gives on tiny models, in a few numbers, beside the version that enters its keys.

The store serves an artefact for as long as its key stays, so a stage whose maths has changed has to raise its version.
`python -m tests.pipeline.golden` pins the numbers anew, and refuses to where the version is still the old one.
"""

import ast
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tasks import (
    adapters,
    analyse,
    collect,
    completions,
    distances,
    evaluate,
    finetune,
    gradients,
    last_steps,
    maps,
    merge,
    pairs,
    probe,
    scales,
    transfer,
    validate,
)
from tests.pipeline.golden_stages import measure

PINNED = Path(__file__).with_name("golden.json")
TASKS = Path(__file__).resolve().parents[2] / "tasks"
VERSIONS: dict[str, tuple[ModuleType, str]] = {
    "fine-tune": (finetune, "FINETUNE_VERSION"),
    "adopt-expert": (finetune, "ADOPT_VERSION"),
    "class-distances": (distances, "VERSION"),
    "collect-activations": (collect, "VERSION"),
    "collect-gradients": (collect, "VERSION"),
    "collect-parameter-gradients": (gradients, "VERSION"),
    "collect-scales": (scales, "VERSION"),
    "procrustes": (maps, "VERSION"),
    "transfer": (transfer, "VERSION"),
    "last-steps": (last_steps, "VERSION"),
    "evaluate": (evaluate, "VERSION"),
    "probe": (probe, "VERSION"),
    "measure-pairs": (pairs, "VERSION"),
    "validate": (validate, "VERSION"),
    "measure-completions": (completions, "VERSION"),
    "carry-adapter": (adapters, "VERSION"),
    "merge": (merge, "VERSION"),
    "merge-strengths": (merge, "VERSION"),
    "compare-inputs": (analyse, "VERSION"),
    "compare-outputs": (analyse, "VERSION"),
    "trace-fine-tuning": (analyse, "VERSION"),
    "measure-drift": (analyse, "VERSION"),
    "describe-maps": (analyse, "VERSION"),
}
"""Where the version of each stage stands."""

COLLECTED = ("collect-activations", "collect-gradients", "collect-parameter-gradients")
BEFORE: dict[str, tuple[str, ...]] = {
    "adopt-expert": ("fine-tune",),
    **dict.fromkeys(COLLECTED[:3], ("fine-tune",)),  # for inputs without labels
    "procrustes": COLLECTED[:3],
    "transfer": ("fine-tune", "procrustes", "collect-scales", *COLLECTED),
    "last-steps": ("transfer",),
    "evaluate": ("last-steps",),
    "probe": ("fine-tune",),
    "validate": ("last-steps",),
    "measure-completions": ("fine-tune",),
    "carry-adapter": ("fine-tune", "procrustes"),
    "merge": ("transfer",),
    "merge-strengths": ("transfer",),
    "compare-inputs": ("procrustes",),
    "compare-outputs": ("transfer",),
    "measure-drift": ("trace-fine-tuning",),
    "describe-maps": ("procrustes",),
}
"""What each stage is measured on, and so follows: its keys change with theirs."""


def named_stages() -> set[str]:
    """Every stage whose key some module of `tasks` makes."""
    found = set(collect.STAGES.values())
    for path in TASKS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "artefact_key":
                if isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
                elif ast.unparse(node.args[0]) != "STAGES[signal]":
                    raise LookupError(f"{path.name}:{node.lineno}: which stage is {ast.unparse(node.args[0])}?")
    return found


def version_constants() -> set[tuple[str, str]]:
    """Every version that some module of `tasks` has, by the module's name."""
    return {
        (path.stem, target.id)
        for path in TASKS.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.endswith("VERSION")
    }


def current(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        stage: {"version": getattr(*VERSIONS[stage]), "numbers": numbers} for stage, numbers in measure(folder).items()
    }


def changes(pinned: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What differs by more than rounding, a line per stage; nothing if all is as it was."""
    lines = []
    for stage in sorted({*pinned, *found}):
        old, new = (side.get(stage, {"version": None, "numbers": {}}) for side in (pinned, found))
        moved = [
            f"{name} {old['numbers'].get(name)} → {new['numbers'].get(name)}"
            for name in sorted({*old["numbers"], *new["numbers"]})
            if not _alike(name, old["numbers"].get(name), new["numbers"].get(name))
        ]
        if moved or old["version"] != new["version"]:
            lines.append(f"{stage} (version {old['version']} → {new['version']}): {'; '.join(moved) or 'same numbers'}")
    return lines


def _alike(name: str, old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return False
    if name.endswith("accuracy"):
        return abs(old - new) <= 1 + 1e-9  # two samples may stand on the border of two classes
    if name.endswith("along"):
        return abs(old - new) <= ALONG
    return math.isclose(old, new, rel_tol=RELATIVE, abs_tol=1e-6)


ALONG, RELATIVE = 2e-4, 1e-3
"""More than another BLAS, thread count or batch size changes, and less than any change of the maths that was tried."""


def pin(pinned: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what to pin.

    Raises:
        ValueError: If a stage gives other numbers though neither its version nor one before it is another.
    """
    raised = {name for name, new in found.items() if new["version"] != pinned.get(name, {}).get("version")}
    for stage, new in found.items():
        if changes({stage: pinned.get(stage, new)}, {stage: new}) and not raised & {stage, *_all_before(stage)}:
            module, name = VERSIONS[stage]
            raise ValueError(
                f"{stage} gives other numbers: raise {name} in {module.__name__.replace('.', '/')}.py first."
            )
    return dict(found)


def _all_before(stage: str) -> set[str]:
    return {name for before in BEFORE.get(stage, ()) for name in (before, *_all_before(before))}


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    return float(f"{content:.6g}") if isinstance(content, float) else content


def main() -> None:
    torch.set_num_threads(1)
    pinned = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found = _rounded(current(Path(folder)))
    for line in changes(pinned, found):
        print(line)
    try:
        PINNED.write_text(json.dumps(pin(pinned, found), indent=1, sort_keys=True) + "\n")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
