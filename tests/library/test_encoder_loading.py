"""Folders of text encoders: what transformers and sentence-transformers write is read as they read it, and written again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification

from bico.errors import CheckpointError
from bico.models.checkpoints import read_checkpoint
from bico.models.encoder.encoder import TextEncoder
from bico.models.encoder.family import WEIGHTS
from bico.models.encoder.recipe import CONFIG, MODULES, PROMPTS, read_recipe
from bico.models.experts import everything, expert_of
from bico.models.families import families, foreign_namings, get_family
from bico.models.loading import load, resolve
from tests.tiny_encoder import KINDS, config_of, texts, tiny_encoder, wordpiece, write_encoder

QUERY = "encoder.layer.0.attention.self.query.weight"


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_sentence_folder(folder: Path, *behind: str, pooling: dict[str, object] | None = None, at: str = "") -> Path:
    """A folder as sentence-transformers writes it; a Dense maps 12 features to 5."""
    write_encoder(folder / at, seed=1)
    kinds = ["Transformer", "Pooling", *behind]
    paths = [at, *(f"{n}_{kind}" for n, kind in enumerate(kinds) if n)]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(folder / MODULES, modules)
    write(folder / "1_Pooling" / CONFIG, pooling or {"word_embedding_dimension": 12, "pooling_mode_mean_tokens": True})
    write(folder / at / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    if "Dense" in kinds:
        torch.manual_seed(3)
        place = folder / paths[kinds.index("Dense")]
        write(
            place / CONFIG, {"in_features": 12, "out_features": 5, "bias": True, "activation_function": "torch.nn.Tanh"}
        )
        save_file({"linear.weight": torch.randn(5, 12), "linear.bias": torch.randn(5)}, place / "model.safetensors")
    return folder


def change(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_model_that_transformers_gives_and_is_written_again(kind: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "one", 1, kind)
    model = load(files := resolve(str(folder)))
    assert isinstance(model, TextEncoder) and {t.dtype for t in model.state().values()} == {torch.float32}
    assert model.recipe.pooling == ("mean",)
    assert model.notes == (f"{folder} does not say how its tokens are pooled: the mean is taken.",)
    inputs = model.prepare(texts(3))
    (tmp_path / "two").mkdir()
    change_all = {name: torch.full_like(tensor, 0.25) for name, tensor in model.state().items()}
    for place, vector in ((folder, {}), (tmp_path / "two", change_all)):
        if vector:
            with model.updated(vector):
                get_family(files.family).save(model, files, place)
        theirs = AutoModel.from_pretrained(place, dtype=torch.float32).eval()
        hidden = theirs(input_ids=inputs[..., 0], attention_mask=model.mask(inputs).long()).last_hidden_state
        wanted = torch.stack([row[mask].mean(0) for row, mask in zip(hidden, model.mask(inputs), strict=True)])
        with model.updated(vector):
            assert_close(model.features(inputs), wanted, rtol=1e-4, atol=1e-5)
    assert load(resolve(str(tmp_path / "two"))).vocabulary == model.vocabulary


def test_a_folder_of_sentence_transformers_goes_through_all_its_modules(tmp_path: Path) -> None:
    folder = write_sentence_folder(tmp_path / "st", "Dense", "Normalize")
    plain = load(resolve(str(write_encoder(tmp_path / "plain", 1))))
    model = load(files := resolve(str(folder)))
    assert model.recipe.normalised and not model.notes and model.tokens == 9
    tensors = load_file(folder / "2_Dense" / "model.safetensors")
    inputs = model.prepare(texts(4))
    wanted = torch.tanh(plain.features(inputs) @ tensors["linear.weight"].T + tensors["linear.bias"])
    assert_close(model.features(inputs), wanted)
    write(folder / PROMPTS, {"prompts": {"query": "mo: "}, "default_prompt_name": "query"})
    files = resolve(str(folder))
    assert load(files).recipe.prompt == "mo: "
    (again := tmp_path / "again").mkdir()
    get_family(files.family).save(load(files), files, again)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {str(path.relative_to(again)) for path in again.rglob("*") if path.is_file()} == names
    assert (again / "3_Normalize").is_dir()
    assert_close(load(resolve(str(again))).features(inputs), wanted)
    assert resolve(str(again)).digest() == files.digest() != resolve(str(tmp_path / "plain")).digest()


def test_a_folder_named_from_where_one_stands_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sentence_folder(tmp_path / "st", "Normalize")
    monkeypatch.chdir(tmp_path)
    (again := tmp_path / "again").mkdir()
    get_family("encoder").save(load(files := resolve("st")), files, again)
    assert resolve("again").digest() == files.digest()


def test_an_older_folder_keeps_its_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = write_sentence_folder(tmp_path / "st", at="0_Transformer")
    model = load(files := resolve(str(folder)))
    assert model.tokens == 9
    (again := tmp_path / "again").mkdir()
    get_family(files.family).save(model, files, again)
    assert (again / "0_Transformer" / WEIGHTS).is_file() and not (again / WEIGHTS).exists()
    assert load(resolve(str(again))).tokens == 9


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("cls", "mean")),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_sqrt_len_tokens": True}, ("max", "mean_sqrt_len_tokens")),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_lasttoken": True, "include_prompt": False}, ("lasttoken",)),
    ],
)
def test_every_way_to_ask_for_a_pooling_is_read(config: dict, modes: tuple[str, ...], tmp_path: Path) -> None:
    recipe = read_recipe(write_sentence_folder(tmp_path, pooling=config))
    assert recipe.pooling == modes and recipe.pools_prompt == ("include_prompt" not in config)


@pytest.mark.parametrize("lead", ["bert.", "0.auto_model.", "model.0.auto_model."])
def test_prefixes_of_other_libraries_are_known(lead: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "one", 1)
    plain = load(resolve(str(folder))).state()
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(name: str) -> str:
        for new, old in older.items():
            name = name.replace(new, old)
        return lead + name

    change(
        folder, lambda state: {renamed(name): t for name, t in state.items()} | {"classifier.weight": torch.ones(2, 12)}
    )
    model = load(files := resolve(str(folder)))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state().items())
    (again := tmp_path / "again").mkdir()
    vector = {QUERY: torch.ones(12, 12)}
    with model.updated(vector):
        get_family(files.family).save(model, files, again)
    written = load_file(again / WEIGHTS)
    assert set(written) == set(load_file(folder / WEIGHTS)) and torch.equal(written[lead + QUERY], plain[QUERY] + 1)


def test_a_classifier_of_transformers_is_read_and_keeps_its_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = AutoModelForSequenceClassification.from_config(config_of("bert"))
    theirs.save_pretrained(tmp_path / "one")
    wordpiece().save_pretrained(tmp_path / "one")
    model = load(files := resolve(str(tmp_path / "one")))
    (tmp_path / "two").mkdir()
    with model.updated({QUERY: torch.ones(12, 12)}):
        get_family(files.family).save(model, files, tmp_path / "two")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "two").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again[name], tensor + (name == f"bert.{QUERY}")), name


def test_what_does_not_fit_is_refused_and_not_made_up(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "one", 1)
    change(folder, lambda state: state | {QUERY: torch.zeros(5, 12)})
    with pytest.raises(
        CheckpointError, match=r"query\.weight is \(5, 12\) in the weights and \(12, 12\) in the config"
    ):
        load(resolve(str(folder)))
    change(folder, lambda state: {name: t for name, t in state.items() if name != QUERY})
    with pytest.raises(CheckpointError, match=r"the weights lack encoder\.layer\.0.*query\.weight \(of 1\)"):
        load(resolve(str(folder)))
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        load(resolve(str(folder)))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer in"):
        resolve(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        resolve(str(folder))


def test_a_pooler_that_a_folder_lacks_is_neither_needed_nor_made_up(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "one", 1)
    change(folder, lambda state: {name: t for name, t in state.items() if not name.startswith("pooler")})
    model = load(files := resolve(str(folder)))
    assert model.features(model.prepare(texts(2))).isfinite().all()
    (tmp_path / "two").mkdir()
    get_family(files.family).save(model, files, tmp_path / "two")
    assert set(load_file(tmp_path / "two" / WEIGHTS)) == set(load_file(folder / WEIGHTS))


def test_modules_that_are_not_known_are_named(tmp_path: Path) -> None:
    folder = write_sentence_folder(tmp_path / "st")
    for kinds, said in (
        (["Transformer", "Pooling", "LSTM"], "names the module LSTM"),
        (["Pooling", "Transformer"], "it must be one Transformer, one Pooling"),
        (["Transformer", "Pooling", "Normalize", "Dense"], "has a Dense behind Normalize"),
    ):
        write(folder / MODULES, [{"path": "", "type": f"x.{kind}"} for kind in kinds])
        with pytest.raises(CheckpointError, match=said):
            resolve(str(folder))
    (folder / MODULES).write_text('{"a": 1}')
    with pytest.raises(CheckpointError, match="is no list of modules"):
        resolve(str(folder))
    for content, said in (("{", "cannot be read"), ('{"pooling_mode": "odd"}', "asks for the pooling odd")):
        write_sentence_folder(folder)
        (folder / "1_Pooling" / CONFIG).write_text(content)
        with pytest.raises(CheckpointError, match=said):
            resolve(str(folder))
    write_sentence_folder(folder)
    write(folder / CONFIG, {"model_type": "llama"})
    with pytest.raises(CheckpointError, match="is of type 'llama': the text encoders that are read are bert"):
        resolve(str(folder))


def test_only_kinds_of_the_table_are_recognised(tmp_path: Path) -> None:
    for kind, family in (("xlm-roberta", "encoder"), ("t5", "t5"), ("gpt2", "decoder"), ("mamba", None)):
        write(tmp_path / CONFIG, {"model_type": kind})
        assert next((f.name for f in families() if f.recognises(tmp_path)), None) == family


def test_what_files_say_of_padding_and_cutting_is_no_part_of_a_tokenizer() -> None:
    plain, busy, other = wordpiece(), wordpiece(), wordpiece(turned=True)
    busy.backend_tokenizer.enable_padding(length=20)
    busy.backend_tokenizer.enable_truncation(5)
    models = [tiny_encoder(1, tokenizer=one) for one in (plain, busy, other)]
    assert models[0].vocabulary == models[1].vocabulary != models[2].vocabulary
    assert torch.equal(models[1].prepare(texts(4, longest=12)), models[0].prepare(texts(4, longest=12)))


def test_a_dense_module_without_a_known_activation_is_refused(tmp_path: Path) -> None:
    folder = write_sentence_folder(tmp_path / "st", "Dense")
    about = {"in_features": 12, "out_features": 5, "bias": True, "activation_function": "torch.nn.Softsign"}
    write(folder / "2_Dense" / CONFIG, about)
    with pytest.raises(CheckpointError, match="activation Softsign of a Dense module is not known"):
        load(resolve(str(folder)))
    assert isinstance(load(resolve(str(write_sentence_folder(tmp_path / "b", "Dense")))).dense[0], nn.Sequential)


def test_one_set_of_weights_is_read_of_a_folder_that_holds_several(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "one", 1)
    wanted = load(resolve(str(folder))).state()
    save_file({name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items()}, folder / "stray.safetensors")
    files = resolve(str(folder))
    assert_close(load(files).state(), wanted, rtol=0, atol=0)
    assert folder.resolve() / "stray.safetensors" not in files.files  # nor does it enter the key
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="is a pickle.*--allow-pickle"):
        resolve(str(folder))
    model = load(files := resolve(str(folder), allow_pickle=True))
    assert_close(model.state(), wanted, rtol=0, atol=0)
    (written := tmp_path / "written").mkdir()
    get_family("encoder").save(model, files, written)
    assert not (written / "pytorch_model.bin").exists()
    assert_close(load(resolve(str(written))).state(), wanted, rtol=0, atol=0)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "one", 1)
    change(folder, lambda weights: {name: (10 * tensor).to(torch.int8) for name, tensor in weights.items()})
    with pytest.raises(CheckpointError, match=r"is quantised: \S+ is of int8"):
        load(resolve(str(folder)))


@pytest.mark.parametrize("form", ["gamma and beta", "sentence-transformers", "with a head"])
def test_experts_of_an_encoder_as_libraries_leave_them(form: str, tmp_path: Path) -> None:
    model = load(resolve(str(write_encoder(tmp_path / "one", 1))))
    place = tmp_path / "expert"
    if form == "sentence-transformers":
        write_sentence_folder(place, at="0_Transformer")
    else:
        write_encoder(place, 1)
    at = place / "0_Transformer" if form == "sentence-transformers" else place
    tuned = {name: tensor + 0.01 for name, tensor in load_file(at / WEIGHTS).items()}
    older = {".gamma": "LayerNorm.weight", ".beta": "LayerNorm.bias"}
    named = {f"bert.{name}": tensor for name, tensor in tuned.items()} if form != "sentence-transformers" else tuned
    if form == "gamma and beta":
        for new, old in older.items():
            named = {name.replace(old, f"LayerNorm{new}"): tensor for name, tensor in named.items()}
    named["classifier.weight"] = torch.ones(3, 12)
    save_file(named, at / WEIGHTS)
    names = foreign_namings("encoder", everything(model))
    expert = expert_of(model, read_checkpoint(place), names, "--expert X")
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in expert.state.items())
