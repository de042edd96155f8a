"""Tiny text encoders of transformers' own classes with random weights, tokenizers for them, and the same function in another
basis.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from bico.models.encoder.encoder import TextEncoder
from bico.models.encoder.recipe import Recipe

SYLLABLES = ("ba", "ke", "li", "mo", "nu", "pra", "sto", "ty")
WORDS = tuple(first + second for first in SYLLABLES for second in SYLLABLES[:5])
BERT, ROBERTA = ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), ("<pad>", "<s>", "</s>", "<unk>")
KINDS = ("bert", "roberta", "electra", "mpnet", "distilbert", "deberta-v2", "modernbert")


def texts(count: int, seed: int = 0, longest: int = 9) -> list[str]:
    """Random texts of different lengths; some words are in no vocabulary whole."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    words = [*WORDS, *("".join(SYLLABLES[draw(8)] for _ in range(3)) for _ in range(20))]
    return [" ".join(words[draw(len(words))] for _ in range(1 + draw(longest))) for _ in range(count)]


def wrapped(made: Tokenizer, names: tuple[str, ...], **more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with special tokens, and the form of pairs that goes with their names."""
    pad, begin, end, unknown = names
    ids = [(name, made.token_to_id(name)) for name in (begin, end)]
    between = end if names is BERT else f"{end} {end}"
    kind = {"single": f"{begin} $A {end}", "pair": f"{begin}:0 $A:0 {between} $B:1 {end}:1"}
    made.post_processor = processors.TemplateProcessing(**kind, special_tokens=ids)
    reads = ["input_ids", "token_type_ids", "attention_mask"] if names is BERT else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, cls_token=begin, sep_token=end, unk_token=unknown, model_max_length=24,
        model_input_names=reads, **more,
    )  # fmt: skip


def wordpiece(names: tuple[str, ...] = BERT, turned: bool = False, whole: bool = True) -> PreTrainedTokenizerFast:
    """WordPieces: words, or their syllables alone, and syllables behind others.

    Arguments:
        names: Of padding, begin, end and unknown; how a pair is joined follows.
        turned: Whether the ids are in another order; texts are cut in the same way.
        whole: Whether words are in the vocabulary.
    """
    pieces = [*(WORDS if whole else ()), *SYLLABLES, *(f"##{part}" for part in SYLLABLES), *"abc"]
    pieces = [*names, *(reversed(pieces) if turned else pieces)]
    made = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token=names[3]))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return wrapped(made, names)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Byte pairs trained on texts of these words: cuts them where no syllable ends."""
    made = Tokenizer(models.BPE(unk_token=ROBERTA[3]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=list(ROBERTA), show_progress=False)
    made.train_from_iterator(texts(60, seed=77), trainer)
    return wrapped(made, ROBERTA)


def config_of(kind: str, width: int = 12, hidden: int = 20, layers: int = 2, heads: int = 2) -> Any:
    shape = {
        "vocab_size": 80, "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": 40, "pad_token_id": 0,
        "initializer_range": 0.3, "attention_probs_dropout_prob": 0.1,
    }  # fmt: skip
    match kind:
        case "distilbert":
            shape |= {"dim": width, "hidden_dim": hidden, "n_layers": layers, "n_heads": heads}
        case "electra":
            shape["embedding_size"] = width
        case "deberta-v2":
            shape |= {
                "relative_attention": True,
                "pos_att_type": ["p2c", "c2p"],
                "share_att_key": True,
                "type_vocab_size": 0,
            }
            shape |= {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
        case "modernbert":
            shape |= {
                "layer_types": ["full_attention", "sliding_attention"][:layers] + ["full_attention"] * (layers - 2)
            }
            shape |= {"local_attention": 6, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    return AutoConfig.for_model(kind, **shape)


def tiny_encoder(
    seed: int,
    kind: str = "bert",
    tokenizer: PreTrainedTokenizerFast | None = None,
    recipe: Recipe | None = None,
    dense: tuple[torch.nn.Module, ...] = (),
    dtype: torch.dtype = torch.float64,
    **shape: int,
) -> TextEncoder:
    """Biases are not zero; norms are left as they are made, so that they commute with `rotated_copy`."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(config_of(kind, **shape)).to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                module.bias.normal_(0, 0.3)
    return TextEncoder(model, tokenizer or wordpiece(), recipe or Recipe(Path()), dense, f"tiny-{kind}-{seed}")


def random_task_vector(model: TextEncoder, seed: int = 3, scale: float = 0.3) -> dict[str, Tensor]:
    """A change of the sites alone, weights and biases, as large as `scale` times the weights."""
    generator = torch.Generator().manual_seed(seed)
    slots = {slot.parameter for site in model.sites for slot in (site.weight, site.bias) if slot is not None}
    return {
        name: scale * p.std() * torch.randn(p.shape, dtype=p.dtype, generator=generator)
        if name in slots
        else torch.zeros_like(p)
        for name, p in model.state().items()
    }


def stream_rotation(width: int, generator: torch.Generator) -> Tensor:
    """A rotation that keeps every mean over the features, and so commutes with a LayerNorm of unit gain."""
    ones = torch.full((width, 1), width**-0.5, dtype=torch.float64)
    basis = torch.linalg.qr(
        torch.cat([ones, torch.randn(width, width - 1, dtype=torch.float64, generator=generator)], 1)
    ).Q
    inner = torch.linalg.qr(torch.randn(width - 1, width - 1, dtype=torch.float64, generator=generator)).Q
    return basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), inner) @ basis.T


@torch.no_grad()
def rotated_copy(model: TextEncoder, seed: int) -> tuple[TextEncoder, Tensor]:
    """The same function in another basis, and the stream's rotation: heads are rotated inside where no position is written
    into them, hidden units are permuted.
    """
    generator = torch.Generator().manual_seed(seed)
    twin, config = copy.deepcopy(model.model), model.model.config
    width, heads = config.hidden_size, config.num_attention_heads

    def turned_heads() -> Tensor:
        size = width // heads
        return torch.block_diag(
            *(
                torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
                for _ in range(heads)
            )
        )

    stream = stream_rotation(width, generator)
    for module in twin.modules():
        if isinstance(module, torch.nn.Embedding) and module.embedding_dim == width:
            module.weight.copy_(module.weight @ stream)
    state = {name: p.detach() for name, p in twin.named_parameters()}
    bases: dict[tuple[int | None, str], Tensor] = {}
    for site in model.sites:
        if site.role == "q":
            rotary = config.model_type == "modernbert"
            matching = torch.eye(width, dtype=torch.float64) if rotary else turned_heads()
            bases[site.block, "q"] = bases[site.block, "k"] = matching
            bases[site.block, "v"] = turned_heads()
            units = torch.randperm(config.intermediate_size, generator=generator)
            bases[site.block, "wi"] = torch.eye(config.intermediate_size, dtype=torch.float64)[:, units]
            bases[site.block, "gate"] = bases[site.block, "wi"]
        out = bases.get((site.block, site.role), stream)
        into = bases[site.block, {"o": "v", "wo": "wi"}[site.role]] if site.role in ("o", "wo") else stream
        site.weight.write(state, out.T @ site.weight.read(state) @ into)
        if site.bias is not None:
            site.bias.write(state, site.bias.read(state) @ out)
    copied = TextEncoder(twin, model.tokenizer, model.recipe, list(model.dense), f"{model.name}-rotated")
    return copied, stream


def write_encoder(folder: Path, seed: int, kind: str = "bert", head: str = "", **shape: int) -> Path:
    """A folder in transformers' format, float32; with a head's weights beside the encoder's, if asked for."""
    model = tiny_encoder(seed, kind, dtype=torch.float32, **shape)
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
