"""Pre-training of decoders in miniature: it learns, it repeats, and what it writes is a model that is carried."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from bico.data.text import Chat
from bico.errors import ConfigError
from bico.models.loading import load, resolve
from zoo_build.builders import summary
from zoo_build.decoder import DecoderPretraining, build, learning_rate, run, train
from zoo_build.decoder_tokenizers import TOKENIZERS
from zoo_build.measure_decoder import entry
from zoo_build.text_corpus import encode, read_passages

TINY = DecoderPretraining(
    corpus="tales", seed=5, steps=30, warm_up=3, batch_size=8, length=24, vocabulary=300, width=32, head_width=8, heads=4,
    key_heads=2, feed_forward=48, layers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tales"
    folder.mkdir()
    for split, first in (("train", 0), ("test", 40)):
        texts = [
            " ".join(f"The fox took {(7 * n + i) % 9} Rings." for i in range(12)) for n in range(first, first + 40)
        ]
        pq.write_table(
            pa.table({"text": texts, "title": [f"book {n % 5}" for n in range(40)]}), folder / f"{split}.parquet"
        )
    return folder


def test_a_few_steps_lower_the_loss_and_repeat(folder: Path) -> None:
    passages = read_passages(folder, "train")
    tokenizer = TOKENIZERS["bytes"]([passage.text for passage in passages], 300)
    ids, models = encode(tokenizer, passages), [build(TINY, len(tokenizer)) for _ in range(2)]
    losses = [train(model, ids, TINY, progress=False, bfloat16=False) for model in models]
    assert losses[0] == losses[1] and sum(losses[0][-4:]) < sum(losses[0][:4]) - 4
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("cut", TOKENIZERS)
def test_a_recipe_and_a_corpus_make_a_model_of_the_family(cut: str, folder: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, tokenizer=cut)
    about = entry(recipe, tmp_path / "m", run(recipe, tmp_path / "m", [folder], progress=False), [folder])
    assert about["held_out"]["loss"] < about["untrained"]["loss"] - 1
    assert "bits per character" in summary("llama-mini", about)
    theirs, model = AutoModelForCausalLM.from_pretrained(tmp_path / "m"), load(resolve(str(tmp_path / "m")))
    assert torch.equal(theirs.get_output_embeddings().weight, theirs.get_input_embeddings().weight)
    inputs = model.prepare([Chat((("user", "The fox"), ("assistant", "took Rings.")))])
    assert (
        model.tokenizer.decode(inputs[0, 1:, 0].tolist())
        .replace("</s> ", "</s>")
        .startswith("user: The fox</s>assistant: took")
    )
    (places,) = model.places(model.prepare(["The fox took 3 Rings."]))
    assert {1 + len("The"), 1 + len("The fox"), 1 + len("The fox took 3")} <= {*places.tolist()}


def test_odd_recipes_are_refused() -> None:
    assert learning_rate(0, TINY) == 1 / 3 and learning_rate(29, TINY) == 1 / 27
    with pytest.raises(ConfigError, match="tokenizer: "):
        dataclasses.replace(TINY, tokenizer="letters")
