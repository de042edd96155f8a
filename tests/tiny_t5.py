"""Tiny T5s of transformers' own class with random weights, a tokenizer for them, and the same function in another basis."""

import copy
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from bico.models.t5.encoder import T5Encoder

WORDS = ["red", "green", "blue", "yes", "no", *(f"w{n}" for n in range(50))]
CLASS_NAMES = ("red", "green blue", "yes no no")


def tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word; pad 0, end of sequence 1, unknown 2."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def t5_config(d_model: int = 12, d_kv: int = 4, heads: int = 2, d_ff: int = 20, layers: int = 2, gated: bool = False):
    """Attention's inner width (heads x d_kv) differs from d_model, as in T5-3B and T5-11B."""
    return T5Config(
        vocab_size=64,
        d_model=d_model,
        d_kv=d_kv,
        num_heads=heads,
        d_ff=d_ff,
        num_layers=layers,
        num_decoder_layers=1,
        feed_forward_proj="gated-gelu" if gated else "relu",
        decoder_start_token_id=0,
        initializer_factor=1.0,
    )


def tiny_t5(seed: int, dtype: torch.dtype = torch.float64, words: list[str] = WORDS, **shape: Any) -> T5Encoder:
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(t5_config(**shape)).to(dtype)
    return T5Encoder(model, tokenizer(words), f"tiny-t5-{seed}")


def write_t5(folder: Path, seed: int, words: list[str] = WORDS, **shape: Any) -> Path:
    """A model folder in transformers' format, float16."""
    model = tiny_t5(seed, torch.float16, words, **shape)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0, longest: int = 9) -> list[str]:
    """Random texts of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    return [" ".join(WORDS[draw(len(WORDS))] for _ in range(1 + draw(longest))) for _ in range(count)]


def write_colours(folder: Path) -> Path:
    """A task folder of texts: the class of a text is the colour that it begins with."""
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=WORDS[:3]))
    folder.mkdir(exist_ok=True)
    for split, seed, count in (("train", 1, 60), ("test", 2, 40)):
        labels = [n % 3 for n in range(count)]
        rows = {
            "text": [f"{WORDS[n]} {t}" for n, t in zip(labels, texts(count, seed, 3), strict=True)],
            "label": labels,
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def random_task_vector(model: T5Encoder, seed: int = 3, scale: float = 0.1) -> dict[str, Tensor]:
    """A change of the sites alone, as large as `scale` times the weights."""
    generator = torch.Generator().manual_seed(seed)
    sites = {site.weight.parameter for site in model.sites}
    return {
        name: scale * p.std() * torch.randn(p.shape, dtype=p.dtype, generator=generator)
        if name in sites
        else torch.zeros_like(p)
        for name, p in model.state().items()
    }


@torch.no_grad()
def rotated_copy(model: T5Encoder, seed: int) -> T5Encoder:
    """The same function in another basis: a rotated residual stream, heads rotated inside, hidden units permuted.

    RMS norms commute with a rotation as long as their weights are ones, which those of a new model are. Decoder and
    embedding share the stream's basis, so they are rotated along.
    """
    generator = torch.Generator().manual_seed(seed)
    twin = copy.deepcopy(model.model)
    config = twin.config

    def rotation(size: int) -> Tensor:
        return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q

    def heads() -> Tensor:
        return torch.block_diag(*(rotation(config.d_kv) for _ in range(config.num_heads)))

    stream = rotation(config.d_model)  # x -> x @ stream
    twin.shared.weight.copy_(twin.shared.weight @ stream)
    for stack in (twin.encoder, twin.decoder):
        for block in stack.block:
            for layer in block.layer:
                if hasattr(layer, "DenseReluDense"):
                    mlp, hidden = layer.DenseReluDense, torch.randperm(config.d_ff, generator=generator)
                    for linear in (mlp.wi_0, mlp.wi_1) if config.is_gated_act else (mlp.wi,):
                        linear.weight.copy_(linear.weight[hidden] @ stream)
                    mlp.wo.weight.copy_(stream.T @ mlp.wo.weight[:, hidden])
                    continue
                attention = layer.SelfAttention if hasattr(layer, "SelfAttention") else layer.EncDecAttention
                matching, value = heads(), heads()
                for linear, turn in ((attention.q, matching), (attention.k, matching), (attention.v, value)):
                    linear.weight.copy_(turn.T @ linear.weight @ stream)
                attention.o.weight.copy_(stream.T @ attention.o.weight @ value)
    return T5Encoder(twin, model.tokenizer, f"{model.name}-rotated")
