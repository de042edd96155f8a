"""What is compared, and on which models and tasks."""

from dataclasses import dataclass

from benchmarks.real.grid import FINETUNE
from benchmarks.real.models import MINILM, MPNET, SMALL

FIXED, EFFECT, SEARCH, BOTH = "bico", "bico:strength=effect", "bico+search", "bico:strength=effect+search"
CONTROL = "bico:strength=effect+random+search"
"""Random numbers of the carried vector's norms, with the same search: a search can gain by itself."""
QUESTIONS = {
    "strength": (FIXED, EFFECT, SEARCH, BOTH, CONTROL, "theseus", "theseus:strength=effect"),
    "rank": (
        "bico:rank=0", "bico", "bico:rank=64", "bico:rank=32",
        "bico:rank=0:strength=effect", EFFECT, "bico:rank=64:strength=effect", "bico:rank=32:strength=effect",
    ),
}  # fmt: skip
"""What is compared, the reference first."""
DEAR = {"strength": (FIXED, EFFECT, SEARCH, BOTH)}
"""Less, where an evaluation takes a minute."""


@dataclass(frozen=True)
class Pair:
    """Models, their tasks, and how much of them is measured."""

    source: str
    target: str
    development: tuple[str, ...]
    confirmation: tuple[str, ...]
    samples: tuple[int, ...] = (20, 50, 100)
    experts: tuple[int, ...] = (0, 1)
    finetune: dict | None = None
    limit: int | None = None
    """Of test samples."""
    dear: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.development + self.confirmation

    @property
    def probed(self) -> bool:
        """Whether models are measured by probes."""
        return not self.source.startswith("zoo:mini")


VISION = {
    "development": ("digits", "segments", "mnist"),
    "confirmation": ("lamps", "fashion_mnist", "gtsrb", "cifar10"),
    "limit": 500,
}
TEXT = {"development": ("trec", "subj"), "confirmation": ("snli", "mrpc"), "limit": 500}
ENCODERS = {"development": ("trec",), "confirmation": ("subj", "snli"), "finetune": FINETUNE, "experts": (0,)}
PAIRS = {
    "mini-a-mini-b": Pair("zoo:mini-a", "zoo:mini-b", **VISION),
    "mini-b-mini-a": Pair("zoo:mini-b", "zoo:mini-a", **VISION, experts=(0,)),
    "mini-l-mini-a": Pair("zoo:mini-l", "zoo:mini-a", **VISION, experts=(0,)),
    "t5-a-t5-b": Pair("zoo:t5-mini-a", "zoo:t5-mini-b", **TEXT),
    "t5-deep-t5-a": Pair("zoo:t5-mini-deep", "zoo:t5-mini-a", **TEXT, experts=(0,)),
    "l3-minilm": Pair(SMALL, MINILM, **ENCODERS, limit=300),
    "minilm-l3": Pair(MINILM, SMALL, **ENCODERS, limit=300),
    "minilm-mpnet": Pair(MINILM, MPNET, **ENCODERS, limit=200, dear=True),
}  # fmt: skip


def methods_of(question: str, pair: Pair) -> list[str]:
    """What a question compares on a pair."""
    return list(DEAR.get(question, QUESTIONS[question]) if pair.dear else QUESTIONS[question])
