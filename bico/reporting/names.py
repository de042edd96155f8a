"""What people call things: methods with their settings and last steps, and models."""

from pathlib import PurePath

from bico.last_steps import LAST_STEPS
from bico.methods import METHODS
from bico.methods.settings import build_part
from bico.methods.spec import NONE, Part, Spec
from bico.models.families import schemes
from bico.reporting.references import REFERENCES

OTHER_COLOUR = "black"


def label_of(spec: Spec) -> str:
    """Returns a method's name for people, with the settings that were given.

    Example:
        >>> label_of(Spec.parse("gradfix:mask=force:vote=mean"))
        'GradFix, mask force, vote mean'
        >>> label_of(Spec.parse("bico+head:targets=labels"))
        'BiCo + head of labels'
    """
    return " + ".join([_first(spec.first), *map(_step, spec.steps)])


def colour_of(spec: Spec) -> str:
    """The colour of a method's lines; variants of one method share it."""
    return METHODS[spec.name].colour if spec.name in METHODS else OTHER_COLOUR


def short_name(ref: str) -> str:
    """A model's name in a heading; of a folder, its own name and not the path of one machine.

    Example:
        >>> short_name("zoo:mini-a"), short_name("some/folder/my-vit")
        ('mini-a', 'my-vit')
    """
    scheme, _, name = ref.partition(":")
    return name if scheme in schemes() else PurePath(ref).name


def _first(part: Part) -> str:
    if part.name == NONE:
        return "no transport"
    if part.name in REFERENCES:
        return REFERENCES[part.name].label
    label = METHODS[part.name].label if part.name in METHODS else part.name
    return ", ".join([label, *map(_spoken, part.given)])


def _step(part: Part) -> str:
    if part.name not in LAST_STEPS:
        return ", ".join([part.name, *map(_spoken, part.given)])
    step = build_part(part, LAST_STEPS, {})
    return ", ".join([step.label, *(_spoken(pair) for pair in part.given if pair.partition("=")[0] not in step.told)])


def _spoken(pair: str) -> str:
    return pair.replace("=", " ")
