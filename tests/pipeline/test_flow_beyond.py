"""The thread with last steps, inputs without labels and baselines: its stages, and that it does what the library does."""

import json
from operator import eq
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from bico import load_classifier
from bico.calibration.covariances import Batch
from bico.calibration.pseudo_labels import expert_scores, pseudo_labels
from bico.data.tasks import get_task
from bico.errors import ConfigError, NotEnoughSamplesError
from bico.last_steps import Samples
from bico.methods.variant import get_variant, run
from bico.models.loading import load, resolve
from flows.config import TransferConfig
from flows.planning.plan import make_plan
from flows.single import evaluate_one
from flows.transfer import Result
from storage.checkpoints import load_state
from tasks.inputs import TaskRef, open_split
from tests.flow_setup import Bench
from tests.pipeline.test_flow import BLOCKS, computed
from tests.pipeline.test_flow_text import settings, words  # noqa: F401 - a fixture

UNLABELLED = 12


def in_memory(bench: Bench, text: str, calibration: list[dict], samples: int) -> dict:
    """The same variant by the library, from the files and the indices that the flow has left."""
    files = [resolve(str(bench.releases[name])) for name in ("a", "b")]
    source, target = (load(f) for f in files)
    task = TaskRef("digits")
    opened = task.open()
    heads = tuple(m.head(opened.class_names, opened.prompts) for m in (source, target))
    ours, theirs = (open_split(f, "cpu", task, "train") for f in files)
    (expert,) = (bench.folder / "home/store/final").glob("*/expert.safetensors")
    tau = {k: v - source.state()[k] for k, v in load_state(expert).items()}
    known = next((c["indices"] for c in calibration if "pseudo_labels" not in c), [])[:samples]
    unknown = next((c["indices"] for c in calibration if "pseudo_labels" in c), [])
    assert not set(known) & set(unknown)

    def batch(indices: list[int], pseudo_labelled: bool) -> list[Batch]:
        if not indices:
            return []
        (x, labels), (y, _) = (data.batch(torch.tensor(indices)) for data in (ours, theirs))
        return [Batch(x, y, pseudo_labels(expert_scores(source, tau, [x], heads[0])) if pseudo_labelled else labels)]

    samples = Samples(batch(known, False), batch(unknown, True))
    return run(get_variant(text, lr=1e-3), tau, source, target, samples, heads).vector


def check_exported(result: Result, bench: Bench, *data: Path) -> None:
    """What `bico evaluate` says of an exported model with a classifier is its row, and what the model's card says."""
    for row in result.rows:
        folder = result.outputs["models"].get(row.cell.folder)
        if folder is None or not any(part.name == "head" for part in row.method.steps) or row.seed:
            continue
        (measured,) = evaluate_one(folder, [row.task], list(data), None, 30, bench.settings)["rows"]
        assert measured == {"task": row.task, "accuracy": row.accuracy, "by": "classifier in the folder"}
        card = (Path(folder) / "README.md").read_text()
        assert f"{row.accuracy:.2f} %" in card and f'load_classifier("{row.cell.folder}")' in card
        own = get_task(row.task, list(data))
        test = own.open("test")
        said = load_classifier(folder)([test.example(i) for i in range(30)])
        right = [own.class_names[int(label)] for label in test.labels[:30]]
        assert 100 * sum(map(eq, said, right)) / 30 == pytest.approx(row.accuracy)


def test_last_steps_and_unlabelled_inputs_are_stages_of_their_own(bench: Bench) -> None:
    methods = ["bico+projection", "bico", "none+head", "none+head:targets=labels", "few-shot"]
    first = bench.run(methods=methods, samples=[8], unlabelled=UNLABELLED, oracle=False, export="all")
    assert computed(first) == {
        "fine-tune": 1,
        "collect-activations": 2,  # with labels, and with the expert's predictions
        "collect-gradients": 2,
        "collect-parameter-gradients": 2,
        "procrustes": BLOCKS,  # a block's maps of both regimes are one task
        "transfer": 4,  # of bico and few-shot, in two regimes: that of bico+projection is bico's
        "last-steps": 5,  # projection and head in two regimes, the head of labels in one
        "evaluate": 2 + 9,
    }
    regimes = {(str(r.method), r.budget.asked, r.budget.unlabelled) for r in first.rows if r.budget.asked}
    assert regimes == {(m, 8, u) for m in methods for u in (0, UNLABELLED)} - {(methods[3], 8, UNLABELLED)}
    text = Path(first.outputs["markdown"]).read_text()
    assert "| BiCo + projection | 8 | 12 |" in text and "With 8 labels and 12 unlabelled inputs" in text

    exported = load_state(
        Path(first.outputs["models"]["digits-bico+projection-n8-u12-seed0"]) / "task-vector.safetensors"
    )
    drawn = json.loads(Path(first.outputs["calibration"]).read_text())
    for name, tensor in in_memory(bench, "bico+projection", drawn, 8).items():
        assert_close(exported[name], tensor, atol=2e-4, rtol=2e-3)
    plain = in_memory(bench, "bico", drawn, 8)["visual.proj"]
    assert (exported["visual.proj"] - plain).norm() > 0.01 * plain.norm()

    assert computed(bench.run(methods=methods, samples=[8], unlabelled=UNLABELLED, oracle=False)) == {}
    few = ["bico+projection", "few-shot"]
    more = bench.run(methods=few, samples=[8], unlabelled=UNLABELLED + 1, oracle=False)
    assert set(computed(more)) == {
        "collect-activations",
        "collect-gradients",
        "collect-parameter-gradients",
        "procrustes",
        "transfer",
        "last-steps",
        "evaluate",
    }
    soft = bench.run(methods=["bico"], samples=[8], unlabelled=UNLABELLED, pseudo_labels="soft", oracle=False)
    assert computed(soft)["transfer"] == 1
    assert computed(soft)["collect-activations"] == 2  # the sum of both regimes is solved from both
    labels_only = bench.run(methods=["bico"], samples=[8], oracle=False)
    assert computed(labels_only) == {}


def test_no_labels_at_all_and_baselines(bench: Bench) -> None:
    methods = ["bico+head", "bico+projection"]
    about = {"methods": methods, "samples": [0], "unlabelled": UNLABELLED, "baselines": True, "export": "all"}
    result = bench.run(**about)
    found = {str(r.method) for r in result.rows}
    assert found == {
        *methods, "zero-shot", "fine-tuned", "expert", "none+head", "none+head:fit=logistic", "none+projection",
        "few-shot", "none+tune:steps=30",
    }  # fmt: skip
    assert all(r.budget.asked == 0 for r in result.rows)
    assert "digits-bico+head-n0-u12-seed0" in result.outputs["models"]
    check_exported(result, bench)
    assert "With 12 unlabelled inputs" in Path(result.outputs["markdown"]).read_text()
    assert computed(bench.run(**about)) == {}


def test_text_models_get_the_same_through_their_probe(words: Bench) -> None:  # noqa: F811
    about = settings(words, methods=["bico+head", "bico"], samples=[12], unlabelled=9, baselines=True, oracle=False)
    result = words.run(**about, export="all")
    assert {(str(r.method), r.budget.asked, r.budget.unlabelled) for r in result.rows if str(r.method).startswith(("bico", "none"))} == {
        *((m, 12, u) for m in ("bico", "bico+head", "none+head", "none+head:fit=logistic", "none+tune:steps=30") for u in (0, 9)),
        *((f"none+head:targets=labels{fit}", 12, 0) for fit in ("", ":fit=logistic")),
    }  # fmt: skip
    assert "colours-bico+head-n12-u9-seed0" in result.outputs["models"]
    check_exported(result, words, words.folder / "colours")
    assert computed(words.run(**about)) == {}
    for changes, message in (
        ({"samples": [0]}, "is measured by a probe"),
        ({"pseudo_labels": "soft", "loss": "text"}, "takes no probabilities"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_plan(words.config(**about | changes), words.settings)


def test_what_cannot_be_drawn_is_told_before_any_work(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="learns from labels, and --samples 0 gives none"):
        make_plan(bench.config(methods=["none+head:targets=labels"], samples=[0], unlabelled=5), bench.settings)
    with pytest.raises(NotEnoughSamplesError, match="of which 8 serve with labels: lower --unlabelled to 1289"):
        make_plan(bench.config(unlabelled=1290), bench.settings)
    with pytest.raises(ValueError, match="0 labels need inputs without labels"):
        TransferConfig(source="x", target="y", tasks=["digits"], samples=[0])
