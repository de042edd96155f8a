"""Bad inputs and the error that each gets, as docs/errors.md shows them.

python -m tests.errors_table > docs/errors.md
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from bico import load_classifier
from bico.calibration.pack import Pack
from bico.data.pairs import get_pairs
from bico.data.reading import make_reading
from bico.data.tasks import get_task
from bico.errors import BicoError
from bico.evaluation.head_files import read_head
from bico.evaluation.predictions import predicted
from bico.methods import Pair, get_method
from bico.methods.variant import get_variant
from bico.models.clip.family import CONFIG, WEIGHTS
from bico.models.encoder.family import ENCODER
from bico.models.families import find_weights
from bico.models.files import HEAD_FILE
from bico.models.loading import load, resolve
from bico.models.releases import Release, releases_at
from bico.reporting.compare import compare
from flows import pretrain
from flows.commands.cache_cli import parse_age
from flows.config import read_config
from flows.merge import plan_merge
from flows.planning.experts import carried
from flows.records.repeat import check_out
from flows.records.results import record_of_run, rows_of
from flows.release_watch import WatchConfig
from flows.settings import Settings
from storage import gc
from storage.arrays import read_arrays, write_arrays
from storage.artefacts import ArtefactStore
from storage.checkpoints import load_state
from storage.manifest import MANIFEST
from storage.runs import register_models
from storage.tracking import Tracker
from tasks.pack import read_pack
from tasks.releases import records
from tests.mistakes import (
    Here,
    Mistake,
    _arrays,
    _code,
    _configuration,
    _cut,
    _damaged,
    _encoder,
    _head,
    _newer,
    _other_weights,
    _pack,
    _pairs,
    _png,
    _safetensors,
    _saved,
    _table,
)
from tests.releases import write_release
from tests.rows import row
from tests.tiny_t5 import WORDS
from zoo_build.text_corpus import read_passages

HEADER = """# Bad inputs

What BiCo says to inputs that cannot work: one line that names what, where, why and what to do. The command line prints
it after `error:` and exits with code 2, before any work where that can be seen beforehand. A test makes each of these
mistakes and compares; `python -m tests.errors_table > docs/errors.md` writes the table anew. `…` stands for names that
go on, PATH for a folder.
"""


TWO = "source: x\ntarget: y\n"
MISTAKES = [
    Mistake("Configurations", "a file that is not there", lambda h: read_config(h.path / "none.yaml", {})),
    Mistake("Configurations", "`source: [`", lambda h: h.yaml("source: [")),
    Mistake("Configurations", "`- a` (no mapping)", lambda h: h.yaml("- a\n")),
    Mistake(
        "Configurations",
        "`source: !!python/object/apply:os.system [ls]`",
        lambda h: h.yaml("source: !!python/object/apply:os.system [ls]\n"),
    ),
    Mistake("Configurations", "`method: [bico]`", lambda h: h.yaml(TWO + "tasks: [digits]\nmethod: [bico]\n")),
    Mistake("Configurations", "no `target`", lambda h: h.yaml("source: x\ntasks: [digits]\n")),
    Mistake("Configurations", "`tasks: []`", lambda h: h.yaml(TWO + "tasks: []\n")),
    Mistake("Configurations", "`samples: [0]`", lambda h: h.yaml(TWO + "tasks: [digits]\nsamples: [0]\n")),
    Mistake("Configurations", "`--samples 0`, a method of labels", lambda h: h.plan(
        samples=[0], unlabelled=5, methods=["none+head:targets=labels"])),
    Mistake("Configurations", "method `none`", lambda h: get_variant("none")),
    Mistake("Configurations", "method `bico+projektion`", lambda h: get_variant("bico+projektion")),
    Mistake("Configurations", "method `bico+head+projection`", lambda h: get_variant("bico+head+projection")),
    Mistake("Configurations", "method `none+head:fit=logistic:penalty=1`", lambda h: get_variant(
        "none+head:fit=logistic:penalty=1")),
    Mistake("Configurations", "method `none+tune:steps=0`", lambda h: get_variant("none+tune:steps=0")),
    Mistake("Configurations", "`pseudo_labels: medium`", lambda h: h.yaml(TWO + "tasks: [digits]\npseudo_labels: medium\n")),
    Mistake("Configurations", "`samples: many`", lambda h: h.yaml(TWO + "tasks: [digits]\nsamples: many\n")),
    Mistake("Configurations", "`sampling: centroid`", lambda h: h.yaml(TWO + "tasks: [digits]\nsampling: centroid\n")),
    Mistake("Configurations", "`completion: full`", lambda h: h.yaml(TWO + "tasks: [digits]\ncompletion: full\n")),
    Mistake("Configurations", "`--out` with another run's models", lambda h: (
        (h.path / "models" / "m").mkdir(parents=True), check_out(h.path, "x"))),
    Mistake("Configurations", "`export: some`", lambda h: h.yaml(TWO + "tasks: [digits]\nexport: some\n")),
    Mistake("Configurations", "`batch_size: 0`", lambda h: h.yaml(TWO + "tasks: [digits]\nbatch_size: 0\n")),
    Mistake(
        "Configurations", "`finetune: {step: 3}`", lambda h: h.yaml(TWO + "tasks: [digits]\nfinetune: {step: 3}\n")
    ),
    Mistake(
        "Configurations", "`finetune: {steps: 0}`", lambda h: h.yaml(TWO + "tasks: [digits]\nfinetune: {steps: 0}\n")
    ),
    Mistake("Configurations", "`alpha: .nan`", lambda h: h.plan(alpha=float("nan"))),
    Mistake("Configurations", "`seeds: [-1]`", lambda h: h.yaml(TWO + "tasks: [digits]\nseeds: [-1]\n")),
    Mistake("Configurations", "`finetune: {lr: .nan}`", lambda h: h.yaml(
        TWO + "tasks: [digits]\nfinetune: {lr: .nan}\n")),
    Mistake("Configurations", "`out: ~nobody-there/x`", lambda h: h.yaml(
        TWO + "tasks: [digits]\nout: ~nobody-there/x\n")),
    Mistake("Configurations", "method `bico+head:penalty=-1`", lambda h: get_variant("bico+head:penalty=-1")),
    Mistake("Configurations", "method `bico:alpha=x`", lambda h: get_variant("bico:alpha=x")),
    Mistake("Configurations", "method `few-shot:alpha=2`", lambda h: get_variant("few-shot:alpha=2")),
    Mistake("Configurations", "`--alpha 0.5,x`", lambda h: h.config_checked(alpha="0.5,x")),
    Mistake("Configurations", "method `cross-lora:rank=0`", lambda h: get_method("cross-lora:rank=0")),
    Mistake("Configurations", "method `orthogonal-shift:beta=nan`", lambda h: get_method("orthogonal-shift:beta=nan")),
    Mistake("Configurations", "method `orthogonal-shift` for another width", lambda h: h.plan(
        target=str(h.release("wide", width=24)), methods=["orthogonal-shift"])),
    Mistake("Configurations", "method `theseus-data-free:samples=10`", lambda h: get_method("theseus-data-free:samples=10")),
    Mistake("Configurations", "method `bicoo`", lambda h: get_method("bicoo")),
    Mistake("Configurations", "method `bico:complet=svd`", lambda h: get_method("bico:complet=svd")),
    Mistake("Configurations", "method `gradfix:mask=soft`", lambda h: get_method("gradfix:mask=soft")),
    Mistake("Configurations", "method `naive` between two shapes", lambda h: h.plan(
        target=str(h.release("wide", width=24)), methods=["naive"])),
    Mistake("Configurations", "`--loss text` of pictures", lambda h: h.plan(loss="text")),
    Mistake("Configurations", "`BICO_DEVICE=tpu`", lambda h: Settings.from_environment(device="tpu")),
    Mistake("Configurations", "`BICO_WORKERS=two`", lambda h: Settings.from_environment(workers="two")),
    Mistake("Configurations", "`--workers 0`", lambda h: Settings.from_environment(workers=0)),
    Mistake("Configurations", "`--home a?b`", lambda h: Settings.from_environment(home="a?b")),
    Mistake("Configurations", "`--memory -1`", lambda h: Settings.from_environment(memory=-1)),
    Mistake("Configurations", "`--out` below a file", lambda h: h.plan(out=h.file("file", "") / "below")),
    Mistake("Configurations", "`bico cache gc --older-than soon`", lambda h: parse_age("soon")),
    Mistake("Data", "task `digit`", lambda h: get_task("digit")),
    Mistake("Data", "task `../../etc`", lambda h: get_task("../../etc")),
    Mistake("Data", "task `hub:mnits`", lambda h: get_task("hub:mnits")),
    Mistake("Data", "`--data` with an empty folder", lambda h: get_task(h.path.name, [h.path])),
    Mistake(
        "Data", "a table without labels", lambda h: get_task("flowers", [_table(h, picture=["a"], name=["b"])])
    ),
    Mistake("Data", "labels 0, 1 and 5 of three classes", lambda h: get_task("flowers", [_table(
        h, classes=["a", "b", "c"], text=["x", "y", "z"], label=[0, 1, 5])])),
    Mistake("Data", "a picture that is none", lambda h: get_task("flowers", [_table(
        h, image=[b"no picture"] * 2, label=["rose", "tulip"])])),
    Mistake("Data", "two columns of text, and no name says which", lambda h: get_task("flowers", [_table(
        h, first=["a", "b"], second=["c", "d"], label=[0, 1])])),
    Mistake("Data", "one table, and nothing to measure on", lambda h: get_task("flowers", [
        h.file("flowers/rows.csv", "text,label\na,rose\n").parent])),
    Mistake("Data", "a `--data` folder that no task reads", lambda h: h.plan(data=[_table(h, text=["a"], label=[0])])),
    Mistake("Data", "two `--data` folders of one name", lambda h: get_task("pets", [h.path / "a/pets", h.path / "b/pets"])),
    Mistake("Data", "`test_share: 20` in task.yaml", lambda h: get_task("flowers", [
        h.file("flowers/task.yaml", "test_share: 20\n").parent])),
    Mistake("Data", "`--prompt cat` of pictures", lambda h: get_task("flowers", [_table(
        h, image=[_png()] * 2, label=[0, 1])], make_reading({"prompts": "cat"}, "options"))),
    Mistake("Data", "pictures for a T5", lambda h: h.plan(source=str(h.text()), target=str(h.text()))),
    Mistake("Data", "`bico zoo build t5-mini-a` without `--data`", lambda h: pretrain.check("t5-mini-a", [])),
    Mistake("Data", "a corpus without titles", lambda h: read_passages(_table(h, text=["a"]), "train")),
    Mistake("Data", "5000 samples of a task with 1297", lambda h: h.plan(samples=[5000])),
    Mistake("Data", "1290 unlabelled inputs of a task with 1297 samples", lambda h: h.plan(
        samples=[100], unlabelled=1290)),
    Mistake("Data", "`--loss pairs` without `--data`", lambda h: get_pairs("faq", {})),
    Mistake("Data", "pairs in columns of unknown names", lambda h: _pairs(h, "left,right\na,b\n")),
    Mistake("Data", "pairs beside a column `label` that is not named", lambda h: _pairs(
        h, "anchor,positive,label\na,b,0\nc,d,1\n")),
    Mistake("Data", "a pair that lacks a text", lambda h: _pairs(h, "anchor,positive\na,b\nc,\n")),
    Mistake("Data", "a score that is no number", lambda h: _pairs(h, "anchor,positive,score\na,b,0.5\nc,d,high\n")),
    Mistake("Data", "the same score everywhere", lambda h: _pairs(h, "anchor,positive,score\na,b,0.5\nc,d,0.5\n")),
    Mistake("Data", "pairs that all share a text", lambda h: _pairs(h, "anchor,positive\na,b\na,c\n")),
    Mistake("Data", "`--class-names` for pairs", lambda h: _pairs(h, "anchor,positive\na,b\nc,d\n", class_names="x,y")),
    Mistake("Data", "`--loss pairs --sampling per-class`", lambda h: h.plan(loss="pairs", sampling="per-class")),
    Mistake("Data", "`--loss pairs --unlabelled 5`", lambda h: h.plan(loss="pairs", unlabelled=5)),
    Mistake("Data", "`--loss pairs --methods bico+head`", lambda h: h.plan(loss="pairs", methods=["bico+head"])),
    Mistake("Data", "an expert for two tasks", lambda h: h.plan(
        tasks=["digits", "segments"], expert=h.file("e.safetensors", ""))),
    Mistake("Data", "`--expert digit=e.pt --expert digits=e.pt`", lambda h: carried(["digits"], ["digit=e.pt", "digits=e.pt"])),
    Mistake("Data", "two tasks, and an expert for one", lambda h: carried(["digits", "lamps"], ["digits=e.pt"])),
    Mistake("Data", "the same expert twice", lambda h: carried(["digits"], ["e.pt", "digits=e.pt"])),
    Mistake("Data", "`bico merge` of a folder that is no run", lambda h: plan_merge([h.path], h.path, None, Settings())),
    Mistake("Data", "`--pack` of a folder that is no pack", lambda h: read_pack(h.path)),
    Mistake("Data", "a pack whose index leads elsewhere", lambda h: Pack.parse(_pack("../x"), "pack/pack.json")),
    Mistake("Models and checkpoints", "`zoo:mini-q`", lambda h: resolve("zoo:mini-q")),
    Mistake("Models and checkpoints", "`zoo:../../etc`", lambda h: resolve("zoo:../../etc")),
    Mistake("Models and checkpoints", "`clip`", lambda h: resolve("clip")),
    Mistake("Models and checkpoints", "a folder that is not there", lambda h: resolve(str(h.path / "none"))),
    Mistake("Models and checkpoints", "`open_clip:ViT-B-17/openai`", lambda h: resolve("open_clip:ViT-B-17/openai")),
    Mistake("Models and checkpoints", "`open_clip:ViT-B-16/nowhere`", lambda h: resolve("open_clip:ViT-B-16/nowhere")),
    Mistake("Models and checkpoints", "`hf:t5-large`", lambda h: resolve("hf:t5-large")),
    Mistake("Models and checkpoints", "a folder of another model of transformers", lambda h: (
        h.file("config.json", '{"model_type": "vit"}'), resolve(str(h.path)))),
    Mistake("Models and checkpoints", "a folder of a mixture of experts", lambda h: (
        h.file("config.json", '{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}'),
        resolve(str(h.path)))),
    Mistake("Models and checkpoints", "a folder of a quantised decoder", lambda h: (
        h.file("config.json", '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}'),
        resolve(str(h.path)))),
    Mistake("Models and checkpoints", "a T5 without its tokenizer", lambda h: (
        (h.text() / "tokenizer.json").unlink(), resolve(str(h.text())))),
    Mistake("Models and checkpoints", "a pair with two tokenizers", lambda h: Pair.of(
        *(load(resolve(str(h.text(f"t5-{n}", WORDS[n:])))) for n in range(2)))),
    Mistake("Models and checkpoints", "a folder without weights", lambda h: (
        (h.release() / WEIGHTS).unlink(), resolve(str(h.release())))),
    Mistake("Models and checkpoints", "a configuration that is no JSON", lambda h: (
        (h.release() / CONFIG).write_text("{"), resolve(str(h.release())))),
    Mistake("Models and checkpoints", "weights of another image size", lambda h: load(
        resolve(str(_configuration(h, image_size=20))))),
    Mistake("Models and checkpoints", "weights of another width", lambda h: load(
        resolve(str(_configuration(h, width=24, head_width=8))))),
    Mistake("Models and checkpoints", "weights with a NaN", lambda h: load(
        resolve(str(h.changed(visual__proj=torch.full((16, 8), torch.nan)))))),
    Mistake("Models and checkpoints", "weights that are cut", lambda h: (
        _cut(h.release() / WEIGHTS, 3000), load(resolve(str(h.release()))))),
    Mistake("Models and checkpoints", "an expert of another width", lambda h: h.plan(
        expert=h.release("wide", width=24) / WEIGHTS)),
    Mistake("Models and checkpoints", "an expert that is the source itself", lambda h: h.plan(expert=h.release("a"))),
    Mistake("Models and checkpoints", "an expert of another model", lambda h: h.plan(
        expert=write_release(h.path / "b", seed=2))),
    Mistake("Models and checkpoints", "a task vector as an expert", lambda h: h.plan(expert=h.expert(lambda t: 0.01 * t))),
    Mistake("Models and checkpoints", "an expert with two sets of weights", lambda h: h.plan(expert=h.two_sets())),
    Mistake("Models and checkpoints", "an expert of other names", lambda h: h.plan(
        expert=_safetensors(h, {"encoder.layer.0.weight": torch.ones(1)}))),
    Mistake("Models and checkpoints", "a LoRA adapter", lambda h: h.plan(
        expert=_safetensors(h, {"base_model.model.q.lora_A.weight": torch.ones(1)}))),
    Mistake("Models and checkpoints", "a folder in which a shard is absent", lambda h: find_weights(h.file(
        "model.safetensors.index.json", '{"weight_map": {"x": "model-00001-of-00002.safetensors"}}').parent)),
    Mistake("Models and checkpoints", "a T5 without its embedding", lambda h: load(resolve(str(h.without_embedding())))),
    Mistake("Models and checkpoints", "an expert that is not there", lambda h: h.plan(expert=Path("none.safetensors"))),
    Mistake("Models and checkpoints", "`--expert-head` without `--expert`", lambda h: h.plan(
        expert_head=_head(h, 10, 8))),
    Mistake("Models and checkpoints", "a head of other classes than the task", lambda h: h.plan(
        expert=h.expert(lambda t: 1.1 * t), expert_head=_head(h, 9, 8))),
    Mistake("Models and checkpoints", "a head that reads another width", lambda h: h.plan(
        expert=h.expert(lambda t: 1.1 * t), expert_head=_head(h, 10, 16))),
    Mistake("Models and checkpoints", "a folder as the head of a model of pictures", lambda h: h.plan(
        expert=h.expert(lambda t: 1.1 * t), expert_head=h.release())),
    Mistake("Models and checkpoints", "`--pooling cls` of models of pictures", lambda h: h.plan(pooling="cls")),
    Mistake("Models and checkpoints", "`--pooling first`", lambda h: ENCODER.with_pooling(_encoder(h), "first")),
    Mistake("Models and checkpoints", "an encoder without a head in an expert's place", lambda h: ENCODER.with_classifier(
        _encoder(h), _encoder(h).folder)),
    Mistake("Models and checkpoints", "a folder of a LoRA adapter as a model", lambda h: resolve(
        str(h.file("lora/adapter_config.json", "{}").parent))),
    Mistake("Models and checkpoints", "a head's file without a head", lambda h: read_head(h.release() / WEIGHTS)),
    Mistake("Models and checkpoints", "a classifier of a model that has none", lambda h: load_classifier(h.release())),
    Mistake("Models and checkpoints", "an exported head without its classes", lambda h: (
        save_file({"weight": torch.ones(2, 3)}, h.release() / HEAD_FILE), load_classifier(h.release()))),
    Mistake("Models and checkpoints", "scores that are not finite", lambda h: predicted(
        torch.tensor([[0.0, torch.nan]]), "a model")),
    Mistake("Models and checkpoints", "a checkpoint that is a folder", lambda h: load_state(h.path)),
    Mistake("Models and checkpoints", "a pointer of git-lfs", lambda h: load_state(
        h.file("x.safetensors", "version https://git-lfs.github.com/spec/v1\n"))),
    Mistake("Models and checkpoints", "`expert.pt`", lambda h: load_state(_saved({"x": torch.ones(1)})(h))),
    Mistake("Models and checkpoints", "`model.safetensors`, a pickle in truth", lambda h: load_state(
        h.file("model.safetensors", _code()))),
    Mistake("Models and checkpoints", "a pickle that holds code, `--allow-pickle`", lambda h: load_state(
        h.file("x.pt", _code()), allow_pickle=True)),
    Mistake("Models and checkpoints", "a pickled list, `--allow-pickle`", lambda h: load_state(
        _saved([torch.ones(1)])(h), allow_pickle=True)),
    Mistake("Addresses", "store `ftp://host/x`", lambda h: ArtefactStore("ftp://host/x")),
    Mistake("Addresses", "store `s3:///x`", lambda h: ArtefactStore("s3:///x")),
    Mistake("Addresses", "store `s3://key:secret@bucket/x`", lambda h: ArtefactStore("s3://key:secret@bucket/x")),
    Mistake("Addresses", "store `file://server/x`", lambda h: ArtefactStore("file://server/x")),
    Mistake("Addresses", "store below a file", lambda h: ArtefactStore(h.file("file", "") / "store")),
    Mistake("Addresses", "`MLFLOW_TRACKING_URI=http://me:secret@host`", lambda h: Settings.from_environment(
        mlflow_uri="http://me:secret@host")),
    Mistake("Addresses", "MLflow's database is a folder", lambda h: Tracker(f"sqlite:///{h.path}", "bico", h.home)),
    Mistake("The store", "key `../escape`", lambda h: h.store().ref("../escape")),
    Mistake("The store", "an artefact without files", lambda h: h.store().get_or_create("maps-1", lambda folder: None)),
    Mistake("The store", "an artefact with a link", lambda h: h.store().get_or_create(
        "maps-1", lambda folder: (folder / "x").symlink_to("/etc"))),
    Mistake("The store", "an artefact that is gone", lambda h: h.store().folder("maps-1")),
    Mistake("The store", "a cut file", lambda h: _damaged(h, "data", "ab")),
    Mistake("The store", "a flipped bit", lambda h: _damaged(h, "data", "abb")),
    Mistake("The store", "a cut manifest", lambda h: _damaged(h, MANIFEST, "{")),
    Mistake("The store", "an array that is not there", lambda h: read_arrays(_arrays(h), ["b"])),
    Mistake("The store", "an array of half precision", lambda h: write_arrays(h.path / "y", {"a": torch.ones(1).half()})),
    Mistake("The store", "`bico cache gc` without a choice", lambda h: gc.collect(h.store())),
    Mistake("The store", "`bico cache gc --run x`", lambda h: gc.collect(h.store(), run="x")),
    Mistake("Comparing and watching", "`bico compare a b`, no such folders", lambda h: rows_of("a", Settings(home=h.home))),
    Mistake("Comparing and watching", "`bico report a`, no such folder", lambda h: record_of_run("a", Settings(home=h.home))),
    Mistake("Comparing and watching", "`bico report FOLDER`, no run's folder", lambda h: record_of_run(
        str(h.path), Settings(home=h.home))),
    Mistake("Comparing and watching", "a run's id, and no MLflow database", lambda h: rows_of(
        "0" * 32, Settings(home=h.home))),
    Mistake("Comparing and watching", "the id of a run that MLflow does not know", lambda h: (
        Tracker(None, "bico", h.home), rows_of("0" * 32, Settings(home=h.home)))),
    Mistake("Comparing and watching", "a table of something else", lambda h: rows_of(
        str(h.file("results.csv", "a,b\n1,2\n")), Settings(home=h.home))),
    Mistake("Comparing and watching", "two runs on different tasks", lambda h: compare(
        [row("digits", "bico", 20, 0, 50.0)], [row("lamps", "bico", 20, 0, 50.0)])),
    Mistake("Comparing and watching", "`bico compare --method theseus`, in none of them", lambda h: compare(
        [row("digits", "bico", 20, 0, 50.0)], [row("digits", "bico", 20, 0, 50.0)], "theseus")),
    Mistake("Comparing and watching", "`--register my/model`", lambda h: h.config_checked(register_as="my/model")),
    Mistake("Comparing and watching", "`--register NAME` of a run without models", lambda h: register_models(
        tracker := Tracker(None, "bico", h.home), tracker.start_parent("x"), "reader")),
    Mistake("Comparing and watching", "a folder of releases that is not there", lambda h: releases_at(
        str(h.path / "none"), h.path)),
    Mistake("Comparing and watching", "an expert with `tasksk`", lambda h: WatchConfig(
        releases="x", experts={"ours": {"source": "x", "tasksk": ["digits"]}}).transfers(Release("v1", h.path))),
    Mistake("Comparing and watching", "a damaged record of a release", lambda h: (
        h.file("v1/record.json", "{"), records(h.path))),
    Mistake("Versions", "an artefact of a later format", _newer),
    Mistake("Versions", "zoo weights of another version", _other_weights),
]  # fmt: skip


def error_of(mistake: Mistake, folder: Path) -> BicoError:
    """Makes a mistake in a folder and returns the error; it must be one of ours, in one line."""
    try:
        mistake.make(Here(folder))
    except BicoError as error:
        return error
    raise AssertionError(f"{mistake.what}: nothing was said")


def shown(error: BicoError, folder: Path) -> str:
    text = str(error).replace(str(folder.resolve()), "PATH").replace(str(folder), "PATH").replace(folder.name, "PATH")
    text = re.sub(r"PATH[\w./-]*/(?=[\w.-]+)", "PATH/", text)
    text = re.sub(
        r"(Valid: [^,.]+, [^,.]+),[^.]*\.", r"\1, ….", text
    )  # lists of names that change as the project grows
    return text.replace("|", "\\|")


def table() -> str:
    lines, group = [HEADER], ""
    for mistake in MISTAKES:
        if mistake.group != group:
            group = mistake.group
            lines.append(f"\n## {group}\n\n| input | error | message |\n| --- | --- | --- |")
        with TemporaryDirectory() as name:
            folder = Path(name)
            error = error_of(mistake, folder)
            lines.append(f"| {mistake.what} | `{type(error).__name__}` | {shown(error, folder)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
