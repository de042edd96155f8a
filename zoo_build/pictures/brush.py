"""From chance to a scene, and from a scene to pixels."""

import string

import numpy as np
from PIL import Image, ImageFilter

from bico.data.drawing.backgrounds import PATTERNS
from bico.data.drawing.canvas import SIDE, Pose, fill, paint, trace
from bico.data.drawing.strokes import write
from zoo_build.pictures import shapes, signs
from zoo_build.pictures.captions import Scene
from zoo_build.pictures.colours import luminance, shade
from zoo_build.pictures.glyphs import print_text
from zoo_build.pictures.styles import Style

_CHARACTERS = {"digit": string.digits, "capital": string.ascii_uppercase, "small": string.ascii_lowercase}
_GREYS = ("white", "black", "grey")


def pick(shares: dict[str, float], rng: np.random.Generator) -> str:
    """Draws one key with its share as the probability (shares need not sum to one)."""
    edges = np.cumsum(list(shares.values()))
    return list(shares)[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def imagine(style: Style, rng: np.random.Generator) -> Scene:
    """Draws the facts of one picture."""
    kind = pick(style.kinds, rng)
    detail = ""
    if kind in _CHARACTERS:
        subject = str(rng.choice(list(_CHARACTERS[kind])))
    elif kind == "texture":
        subject = str(rng.choice([pattern for pattern in style.backgrounds if pattern != "plain"]))
    elif kind == "board":
        subject = str(rng.choice(list(signs.PLAIN_BOARDS)))
        detail = str(rng.choice(list(string.digits + string.ascii_uppercase)))
    else:
        subject = str(rng.choice(list(shapes.OUTLINES if kind == "shape" else signs.MEANINGS)))
    colours = _GREYS if rng.random() < style.colourless and kind not in ("sign", "board") else tuple(style.palette)
    colour, ground = _two_colours(colours, style, rng)
    background = subject if kind == "texture" else pick(style.backgrounds, rng)
    effect = pick(style.effects, rng)
    if kind in _CHARACTERS and effect == "plain" and rng.random() < style.handwritten:
        effect = "handwritten"
    return Scene(kind, subject, colour, background, ground, effect, detail)


def _two_colours(words: tuple[str, ...], style: Style, rng: np.random.Generator) -> tuple[str, str]:
    """Draws two words that stand out from each other, in the order that the style's polarity asks for."""
    for _ in range(5):
        colour, ground = (str(word) for word in rng.choice(words, size=2, replace=False))
        gap = luminance(np.array(style.palette[colour])) - luminance(np.array(style.palette[ground]))
        if abs(gap) > 70:
            break
    return (colour, ground) if (gap > 0) == (rng.random() < style.light_on_dark) else (ground, colour)


def _layers(scene: Scene, style: Style, rng: np.random.Generator) -> list[signs.Layer]:
    """The masks of a scene, from back to front."""
    if scene.kind in _CHARACTERS:
        # A blurred or coarse character may be of either origin; a clear one says in its facts which it is.
        by_hand = scene.effect == "handwritten" or (scene.effect != "plain" and rng.random() < style.handwritten)
        if by_hand:
            return [(write(scene.subject, rng, style.pen), scene.colour)]
        return [(print_text(scene.subject, rng, style.fonts, style.turn, style.pen.slant / 2), scene.colour)]
    if scene.kind == "texture":
        return []
    pose = Pose.draw(rng, size=(0.6, 0.95), turn=style.turn / (1 if scene.kind == "shape" else 2))
    if scene.kind == "shape":
        outlines = shapes.OUTLINES[scene.subject]
        if scene.subject == "arrow":
            turn = np.pi / 2 * rng.integers(4)
            outlines = (outlines[0] @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]),)
        if rng.random() < style.outlined:
            lines = [pose(shapes.along(outline, 40)) for outline in outlines]
            width = rng.uniform(*style.pen.width) * pose.scale * 0.7
            return [(trace(lines, [np.full(len(line), width) for line in lines]), scene.colour)]
        return [(fill([pose(outline) for outline in outlines]), scene.colour)]
    if scene.kind == "sign":
        board, mark = signs.MEANINGS[scene.subject]
    else:
        board, mark = signs.PLAIN_BOARDS[scene.subject], scene.detail
    layers = signs.board_layers(board, pose)
    if not mark:
        return layers
    if mark[0].isdigit() or mark.isupper() or mark == "!":
        shrink = {1: 0.62, 2: 0.58}.get(len(mark), 0.62)
        return [*layers, (print_text(mark, rng, style.fonts, style.turn / 2, 0.0, shrink), board.mark)]
    return [*layers, (signs.symbol(mark, pose), board.mark)]


def _spoil(picture: np.ndarray, effect: str, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Applies blur, noise or low resolution to a picture (side, side, 3) in 0..255."""
    if effect == "low-resolution":
        how, least = style.coarse
        small = int(rng.integers(least, least + 6))
        image = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).resize((small, small), Image.Resampling.BOX)
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling[how.upper()]), np.float32)
    if effect == "blurry":
        how, radius = style.blur
        if how == "gaussian":
            image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 1.0) * radius))
            return np.asarray(image, np.float32)
        dx, dy = rng.uniform(-1, 1, size=2) * radius / 2
        steps = [(round(dx * t), round(dy * t)) for t in (-1, -0.5, 0, 0.5, 1)]
        return np.mean([np.roll(picture, step, axis=(0, 1)) for step in steps], axis=0)
    how, strength = style.noise
    strength *= 2.5 if effect == "noisy" else 0.4
    if how == "gaussian":
        return picture + rng.normal(scale=strength, size=picture.shape)
    flips = rng.random((SIDE, SIDE, 1))
    return np.where(flips < strength / 2, 10.0, np.where(flips > 1 - strength / 2, 245.0, picture))


def render(scene: Scene, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Draws a scene.

    Arguments:
        scene: The facts to draw.
        style: How to draw them.
        rng: The source of randomness.

    Returns:
        RGB (side, side, 3), uint8.
    """
    words = style.palette
    ground = shade(scene.ground, words, rng, style.shade)
    other = pick({word: 1.0 for word in words if word not in (scene.ground, scene.colour)}, rng)
    second = shade(scene.colour if scene.kind == "texture" else other, words, rng, style.shade)
    if scene.kind != "texture":  # a background must not drown its subject
        second = ground + (second - ground) * rng.uniform(0.15, 0.6)
    picture = paint(np.broadcast_to(ground, (SIDE, SIDE, 3)), PATTERNS[scene.background](rng), second)
    for mask, word in _layers(scene, style, rng):
        colour = shade(word, words, rng, style.shade)
        gap = luminance(colour) - luminance(ground)
        if abs(gap) < 45 and scene.kind not in ("sign", "board"):  # keep it legible
            colour = np.clip(colour + (60 if gap >= 0 else -60), 0, 255)
            if abs(luminance(colour) - luminance(ground)) < 45:
                colour = 255 - colour
        picture = paint(picture, mask, colour)
    return _spoil(picture, scene.effect, style, rng).clip(0, 255).astype(np.uint8)
