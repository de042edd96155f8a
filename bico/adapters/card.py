"""The card of an adapter: what model hubs link it to its base by, and what was done, with which data, to what effect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bico.adapters.adapter import Adapter


@dataclass(frozen=True)
class Story:
    """Where an adapter comes from."""

    base: str
    """The model that it is for, as hubs name it."""
    made: str
    """In a sentence: "carried from A by bico", "cut to rank 16 from a fine-tune of B"."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Method, source, data, samples: rows of the table."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Measured, in the order in which they are shown: of the target before, of it with the adapter, and others."""
    measure: str = "loss"
    notes: Sequence[str] = ()
    """What was left behind, and other lines."""


def adapter_card(adapter: Adapter, story: Story) -> str:
    """Returns a card in Markdown, with the header that hubs link an adapter by."""
    ranks = sorted({update.rank for update in adapter.updates.values()})
    alphas = sorted({update.alpha for update in adapter.updates.values()})
    about = {
        **story.settings,
        "modules": str(len(adapter.updates)),
        "rank": ", ".join(str(rank) for rank in ranks),
        "α": ", ".join(f"{alpha:g}" for alpha in alphas),
    }
    task = adapter.config.get("task_type")
    kind = {
        "CAUSAL_LM": "AutoModelForCausalLM",
        "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    }.get(task or "", "AutoModel")
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {story.base}",
        "base_model_relation: adapter",
        "tags: [lora, model-transfer]",
        "---",
        "",
        f"# A LoRA adapter for {story.base.rstrip('/').rpartition('/')[2]}",
        "",
        story.made,
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in about.items()),
        *(f"| {story.measure}, {who} | {value:.4f} |" for who, value in story.losses.items()),
        "",
        *(f"- {note}" for note in story.notes),
        *([""] if story.notes else []),
        "```python",
        "from peft import PeftModel",
        f"from transformers import {kind}",
        "",
        f'model = PeftModel.from_pretrained({kind}.from_pretrained("{story.base}"), "FOLDER")',
        "```",
        "",
        "Flaws of the source's adapter and of its data travel with it; licences of source and target apply.",
    ]
    return "\n".join(lines) + "\n"
