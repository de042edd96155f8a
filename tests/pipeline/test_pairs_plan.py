"""What a plan says of pairs of texts without classes, before any work, and the pairs that a pair is told from."""

from pathlib import Path

import pytest

from bico.errors import ConfigError
from bico.models.encoder.pairs import BANK
from flows.config import TransferConfig
from flows.planning.plan import make_plan
from flows.settings import Settings
from tasks.inputs import TaskRef, open_head
from tests.tiny_encoder import write_encoder
from tests.tiny_pairs import settings, write_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("pairs"))


def test_the_pairs_to_be_told_from_are_the_smallest_set(folder: Path) -> None:
    plan = make_plan(
        TransferConfig(**settings(folder), out=folder / "out"), Settings(home=folder / "home", device="cpu")
    )
    task: TaskRef = plan.tasks["faq"]
    assert not plan.probed and plan.loss == "pairs" and plan.measured_by == "recall@1"
    bank = open_head(plan.source, "cpu", task, (3, 5, 8))
    assert bank.shape == (3, 25) and bank[:, -1].tolist() == [3, 5, 8]
    assert len(open_head(plan.source, "cpu", task)) == 40 < BANK
    scored = make_plan(
        TransferConfig(**settings(folder, "sts"), out=folder / "out"), Settings(home=folder / "home", device="cpu")
    )
    assert scored.measured_by == "spearman" and len(open_head(scored.target, "cpu", scored.tasks["sts"])) == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sampling": "per-class"}, "no classes to choose by"),
        ({"unlabelled": 5}, "predicts no partners or scores, so loss=pairs needs them"),
        ({"methods": ["bico+head"]}, "ends in a step that needs classes"),
        ({"expert": "expert", "expert_head": Path("head")}, "takes no classifier"),
    ],
)
def test_what_only_classes_have_is_refused(
    changes: dict, match: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "expert" in changes:
        changes = changes | {"expert": str(write_encoder(folder / "c", 1))}
        monkeypatch.setattr("flows.planning.plan.read_expert", lambda *_: type("Read", (), {"notes": ()}))
    config = TransferConfig(**settings(folder, **changes), out=folder / "out")
    with pytest.raises(ConfigError, match=match):
        make_plan(config, Settings(home=folder / "home", device="cpu"))
