"""Running text to pre-train on, and the tokenizer that is trained on it."""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bico.data.layouts import parquet_files
from bico.errors import DataError

VOCABULARY = 6144
"""Ids of the tokenizer, sentinels included."""
SENTINELS = 32
ALPHABET = sorted({chr(i) for i in range(33, 127)} - set(string.ascii_uppercase) | set("▁—£æœ"))
"""Characters that the tokenizer knows; `▁` begins a word."""
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Passage:
    text: str
    book: str


def find_corpus(name: str, folders: Sequence[Path]) -> Path:
    """Returns the folder of a corpus among data folders.

    Raises:
        DataError: If none has the name.
    """
    for folder in folders:
        if folder.name == name:
            return folder
    given = ", ".join(str(folder) for folder in folders) or "no folder"
    raise DataError(f"The recipe trains on the corpus {name!r}, and --data names {given}: add --data PATH/{name}.")


def read_passages(folder: Path, split: str) -> list[Passage]:
    """Reads the passages of a corpus: parquet with the columns `text` and `title`.

    Raises:
        DataError: If files or columns are missing.
    """
    import pyarrow.parquet as pq

    files = parquet_files(folder, split)
    if not files:
        raise DataError(f"--data {folder}: no {split}.parquet there; a corpus holds train.parquet and test.parquet.")
    passages = []
    for path in files:
        names = pq.read_schema(path).names
        if not {"text", "title"} <= set(names):
            raise DataError(f"{path}: a corpus needs the columns `text` and `title`, this file has {', '.join(names)}.")
        table = pq.read_table(path, columns=["text", "title"]).to_pydict()
        passages += [Passage(*row) for row in zip(table["text"], table["title"], strict=True)]
    return passages


def choose_books(passages: Sequence[Passage], first: float, last: float) -> list[Passage]:
    """Returns the passages of the books between two places (0..1) in a fixed shuffled order of all books."""
    books = sorted({passage.book for passage in passages})
    order = torch.randperm(len(books), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = {books[i] for i in order[round(first * len(books)) : round(last * len(books))]}
    return [passage for passage in passages if passage.book in chosen]


def train_tokenizer(texts: Sequence[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Trains the tokenizer of the text models: BPE within lower-case words, with the special tokens where T5 has them.

    Ids 0, 1 and 2 are padding, end and unknown; `<extra_id_0>` has the highest id, `<extra_id_1>` the next, and so on.
    Accents go; punctuation marks and digits are tokens of their own, so that "Who ?" reads as "who?".

    Arguments:
        texts: What to train on.
        vocabulary: How many ids there are at most, sentinels included.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    spellings = {"``": '"', "''": '"', "“": '"', "”": '"', "‘": "'", "’": "'", " n't": "n't"}
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            *(normalizers.Replace(old, new) for old, new in spellings.items()),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    # The alphabet is given: which of the rare characters of a corpus are kept would differ from one run to the next.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - SENTINELS,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=ALPHABET,
        limit_alphabet=len(ALPHABET),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(SENTINELS))])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A $B {END}", special_tokens=[(END, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=1024
    )


def sentinel_ids(tokenizer: PreTrainedTokenizerFast) -> Int[Tensor, " sentinels"]:
    """Returns the ids of `<extra_id_0>`, `<extra_id_1>`, ..."""
    return torch.tensor(tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)]))


def encode(tokenizer: PreTrainedTokenizerFast, passages: Sequence[Passage]) -> list[Int[Tensor, " _"]]:
    """Returns each passage's ids, its end token included."""
    rows = tokenizer([passage.text for passage in passages], verbose=False).input_ids
    return [torch.tensor(row, dtype=torch.int64) for row in rows]


def windows(
    passages: Sequence[Int[Tensor, " _"]], length: int, generator: torch.Generator
) -> Int[Tensor, "windows length"]:
    """Joins the passages in a random order and cuts them into windows, without padding; a rest is left out."""
    order = torch.randperm(len(passages), generator=generator).tolist()
    joined = torch.cat([passages[i] for i in order])
    count = len(joined) // length
    if not count:
        raise DataError(f"The corpus has {len(joined)} tokens, and one window needs {length}.")
    return joined[: count * length].view(count, length)


def batches(
    passages: Sequence[Int[Tensor, " _"]], length: int, size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yields batches (size, length) of windows without end; every round over the passages has an order of its own.

    Raises:
        DataError: If the passages do not fill one batch.
    """
    while True:
        cut = windows(passages, length, generator)
        if len(cut) < size:
            raise DataError(f"The corpus fills {len(cut)} windows of {length} tokens, and one batch needs {size}.")
        yield from (batch for batch in cut.split(size) if len(batch) == size)
