"""The card of an adapter that a transfer made: what model hubs link it by, and what a run measured of it."""

from collections.abc import Mapping, Sequence

from bico.adapters.card import Story
from bico.methods.variant import Variant
from bico.reporting.card import Origin
from bico.reporting.names import label_of, short_name
from bico.reporting.references import EXPERT, SOURCE, ZERO_SHOT
from bico.reporting.rows import Row


def story_of(
    row: Row,
    rows: Sequence[Row],
    variant: Variant,
    origin: Origin,
    strength: float,
    expert: str | None,
    told: Sequence[str],
    kept: Mapping[str, float],
) -> Story:
    """Returns what the card of an adapter says.

    Arguments:
        row: Its own row of the results.
        rows: All of them: of the target as it is, of the source and of its expert the measures are told beside its own.
        strength: By which its updates are multiplied.
        expert: What was carried, by its name.
        told: Lines on what was left behind.
        kept: Share of the energy that each module kept that was cut.
    """
    beside = {ZERO_SHOT.spec: "target as it is", SOURCE.spec: "source as it is", EXPERT.spec: "source with its own"}
    of_task = {one.method: one for one in rows if one.task == row.task}
    pairs = [(name, of_task[spec]) for spec, name in beside.items() if spec in of_task]
    pairs.insert(1 if pairs and pairs[0][0] == beside[ZERO_SHOT.spec] else 0, ("target with this adapter", row))
    loss = bool(row.measures and "loss" in row.measures)
    measure = "test loss in nats per token" if loss else f"test {origin.measure} in %"
    values = {who: one.measures["loss"] if loss else one.accuracy for who, one in pairs}
    settings = {
        "method": label_of(row.method),
        "source": hub_name(origin.source),
        "source's expert": expert or "fine-tuned by the run",
        "data": f"{row.task}, {row.budget} of its training samples, drawn {origin.sampling}",
        "strength": f"{strength:g}",
    }
    if kept:
        settings["energy kept, least of the modules that were cut"] = f"{100 * min(kept.values()):.1f} %"
    trained = variant.method.trained if variant.method else ""
    made = f"Carried by bico from {short_name(origin.source)} to {short_name(origin.target)}, " + (
        f"where {trained}." if trained else "without training."
    )
    return Story(hub_name(origin.target), made, settings, values, measure, tuple(told))


def hub_name(ref: str) -> str:
    """A model as hubs name it: OWNER/NAME of one that came from there, else its own name, and no path of one machine.

    Example:
        >>> hub_name("hf:org/model@main"), hub_name("models/my-llama")
        ('org/model', 'my-llama')
    """
    scheme, _, rest = ref.partition(":")
    return rest.partition("@")[0] if scheme in ("hf", "hf-hub") else short_name(ref)
