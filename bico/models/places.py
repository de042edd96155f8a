"""Places of tokens in the texts that they are of: what tokens of two tokenizers have in common."""

from torch import Tensor

PADDING, BEGIN = -1, 0
"""Places of tokens that are no data, and of those before the first text."""
TEXT = 1 << 32
"""Places that one text takes; longer ones hold no more tokens than any model reads."""


def ending(text: int, character: int) -> int:
    """The place of a token of the first (0) or second (1) text that ends before a character.

    Example:
        >>> ending(0, 3) < ending(0, 4) < closing(ending(0, 4)) < ending(1, 0)
        True
    """
    return text * TEXT + 1 + min(character, TEXT - 3)


def closing(place: int) -> int:
    """The place of a token that is no text, behind a place: it closes the text there, or stands before the first."""
    return BEGIN if place == BEGIN else (place - 1) // TEXT * TEXT + TEXT


def is_text(places: Tensor) -> Tensor:
    """Which places are of text: neither padding nor what stands around the texts."""
    return (places > BEGIN) & (places % TEXT != 0)
