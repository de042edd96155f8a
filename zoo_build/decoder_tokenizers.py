"""The two tokenizers of the zoo's decoders, trained on running text: pieces of bytes, and pieces of words."""

from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
"""Ids 0 to 3."""
_LETTERS = sorted({chr(i) for i in range(33, 127)} | set("▁—£æœ“”‘’é"))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def bytes_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte pairs, as those of GPT-2 and Llama 3: any text, and capitals, are told apart.

    Arguments:
        texts: What to train on.
        vocabulary: How many ids there are at most.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return _wrapped(made)


def words_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Pairs within words that begin with a mark for the blank before them, as those of Llama 2 and Gemma.

    Arguments:
        texts: What to train on.
        vocabulary: How many ids there are at most.
    """
    made = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END, UNKNOWN],
        initial_alphabet=_LETTERS,
        limit_alphabet=len(_LETTERS),
        min_frequency=2,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return _wrapped(made)


def _wrapped(made: Tokenizer) -> PreTrainedTokenizerFast:
    made.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=PAD, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, model_max_length=512,
        chat_template=TEMPLATE,
    )  # fmt: skip


TOKENIZERS: dict[str, Callable[[Sequence[str], int], PreTrainedTokenizerFast]] = {
    "bytes": bytes_tokenizer,
    "words": words_tokenizer,
}
