"""What can be said about a picture.

A caption is a text and its *meaning*: the facts that it states. Two captions of one meaning ("the digit seven",
"a photo of the number: "7".") are true of the same pictures, and the contrastive loss does not set them apart.
"""

from dataclasses import dataclass

import numpy as np

WORDS = {
    str(i): word
    for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
}


@dataclass(frozen=True)
class Scene:
    """The facts about one picture; the brush needs nothing else but chance."""

    kind: str
    """`digit`, `capital`, `small`, `shape`, `texture`, `sign` or `board`."""
    subject: str
    """Which digit, letter, shape, pattern, meaning of a sign, or kind of board."""
    colour: str
    """The word for the subject's colour."""
    background: str
    """The adjective of the background's pattern."""
    ground: str
    """The word for the background's colour."""
    effect: str = "plain"
    """`plain`, `handwritten`, `blurry`, `noisy` or `low-resolution`."""
    detail: str = ""
    """The character on a plain board."""


@dataclass(frozen=True)
class Caption:
    text: str
    meaning: tuple[str, ...]


def article(phrase: str) -> str:
    """Puts `a` or `an` before a phrase.

    Example:
        >>> article("orange arrow")
        'an orange arrow'
    """
    vowel = (phrase[0] in "aeio8" and phrase != "one") or (len(phrase) == 1 and phrase in "AEFHILMNORSX")
    return f"{'an' if vowel else 'a'} {phrase}"


SUBJECT_FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "digit": {
        "a": (
            'a photo of the number: "{s}".',
            "the digit {w}",
            "{s}",
            "{a_w}",
            "the number {s}",
            "an image of the digit {s}",
        ),
        "b": (
            'a photo of the number: "{s}".',
            "the digit {s}",
            "{s}.",
            "a picture of {a_w}",
            "the number {w}",
            'a photo of the digit: "{s}".',
        ),
    },
    "capital": {
        "a": ("the letter {s}", "a capital {s}", "{s}", 'a photo of the letter: "{s}".'),
        "b": ("the letter {s}", "the capital letter {s}", "{s}.", 'a picture of the letter "{s}"'),
    },
    "small": {
        "a": ("the small letter {s}", "a small {s}", "{s}", 'a photo of the small letter: "{s}".'),
        "b": ("the small letter {s}", "the lower-case letter {s}", "{s}.", 'a picture of the small letter "{s}"'),
    },
    "shape": {
        "a": ("{a_s}", "a drawing of {a_s}.", "a photo of {a_s}.", "{s}"),
        "b": ("{a_s}", "a picture of {a_s}", "the shape of {a_s}", "a drawing of {a_s}."),
    },
    "texture": {"a": ("a {s} pattern", "{s}"), "b": ("a {s} texture", "a {s} pattern")},
    "sign": {
        "a": ('a photo of a "{s}" traffic sign.', "a traffic sign: {s}", "{s}"),
        "b": ('a close up photo of a "{s}" traffic sign.', "the road sign {s}", "{s}"),
    },
    "board": {
        "a": ("a sign: {a_s} with {d} on it", "{a_s} with {d}", "{a_s}"),
        "b": ("{a_s} showing {d}", "{a_s} sign with {d} inside", "{a_s} sign"),
    },
}
"""Kind → form → templates that name the subject alone; `{s}` subject, `{w}` its word, `{a_…}` with article."""

COLOUR_FORMS = {"a": ("{a_cs}", "a photo of {a_cs}"), "b": ("{a_cs}", "{s} in {c}")}
GROUND_FORMS = {
    "a": ("{a_s} on a {b} background", "{a_cs} on a {b} background", "{a_cs} on {g}"),
    "b": ("{a_s}, {b} background", "{a_cs}, {b} background", "{a_cs} against {g}"),
}
EFFECT_FORMS = {"a": ("a {e} photo of {a_s}",), "b": ("{a_s}, {e}", "a {e} picture of {a_s}")}


def describe(scene: Scene, form: str, rng: np.random.Generator) -> Caption:
    """Says something true about a scene.

    Arguments:
        scene: The facts.
        form: Whose way of speaking: `a` or `b`.
        rng: The source of randomness.

    Returns:
        One caption. It always names the subject; colour, background and effect only sometimes.
    """
    name = {"capital": f"capital {scene.subject}", "small": f"small {scene.subject}"}.get(scene.kind, scene.subject)
    says_more = scene.kind in ("digit", "capital", "small", "shape")
    draw = rng.random()
    forms: tuple[str, ...]
    if says_more and draw < 0.12:
        forms = COLOUR_FORMS[form]
    elif says_more and draw < 0.24:
        forms = GROUND_FORMS[form]
    elif says_more and draw < 0.36 and scene.effect != "plain":
        forms = EFFECT_FORMS[form]
    else:
        forms, name = SUBJECT_FORMS[scene.kind][form], scene.subject
    template = forms[rng.integers(len(forms))]
    word = WORDS.get(scene.subject, scene.subject)
    text = template.format(
        s=name,
        w=word,
        a_s=article(name),
        a_w=article(word),
        c=scene.colour,
        a_cs=article(f"{scene.colour} {name}"),
        b=scene.background,
        g=scene.ground,
        e=scene.effect,
        d=scene.detail,
    )
    facts = {"{c}": scene.colour, "{a_cs}": scene.colour, "{b}": scene.background, "{g}": scene.ground}
    facts |= {"{e}": scene.effect, "{d}": scene.detail}
    return Caption(text, (scene.kind, scene.subject, *sorted({fact for key, fact in facts.items() if key in template})))
