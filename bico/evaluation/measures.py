"""What a model is measured by where there are no classes: several numbers, of which one stands for it."""

from dataclasses import dataclass

PLAIN = {"loss": "{:.4f} nats per token", "perplexity": "{:.4g}", "bits per character": "{:.4f}"}
"""How those are told that are no shares."""


@dataclass(frozen=True)
class Measures:
    """Of one model on one split; shares in percent."""

    name: str
    """Of the one that stands for the model, a share: the larger the better."""
    all: dict[str, float]
    """By name."""

    @property
    def value(self) -> float:
        return self.all[self.name]


def told(measures: Measures) -> str:
    """All measures in a line.

    Example:
        >>> told(Measures("recall@1", {"recall@1": 50.0, "recall@10": 75.0}))
        'recall@1 50.0 %, recall@10 75.0 %'
        >>> told(Measures("exact match", {"exact match": 50.0, "loss": 1.25}))
        'exact match 50.0 %, loss 1.2500 nats per token'
    """
    return ", ".join(f"{name} {PLAIN.get(name, '{:.1f} %').format(value)}" for name, value in measures.all.items())
