"""From an example to the one text that a decoder reads, and to what of it is a completion.

A chat is put by the tokenizer's own template, so two models may read it as different texts. Contents of messages are what
they have in common: a token's place is counted in the message that it is of.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bico.data.text import Chat, Completion
from bico.errors import ConfigError, DataError, one_line


@dataclass(frozen=True)
class Rendered:
    """A text; places in it are characters."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """From where to where the loss is taken."""
    contents: tuple[tuple[int, int], ...]
    """From where to where the texts lie that it is made of, in their order."""
    whole: bool
    """Whether a chat's template has put all tokens that are no text; else the tokenizer puts what stands before."""
    closed: bool
    """Whether the end of the sequence belongs to the completion."""


def render(example: Any, tokenizer: Any, name: str) -> Rendered:
    """Returns the text of an example: of a completion, a chat, or plain text, which is all completion.

    Raises:
        ConfigError: If a chat meets a tokenizer without a template.
        DataError: If a template cannot put a chat, or nothing tells where its answers are.
    """
    if isinstance(example, Chat):
        return _chat(example, tokenizer, name)
    if isinstance(example, str):
        example = Completion("", example, closed=False)
    text, start = example.prompt + example.completion, len(example.prompt)
    return Rendered(text, ((start, len(text)),), ((0, len(text)),), whole=False, closed=example.closed)


def _chat(chat: Chat, tokenizer: Any, name: str) -> Rendered:
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{name}: its tokenizer has no chat template, so it cannot read `messages`: give columns prompt and completion."
        )
    messages = [{"role": role, "content": content} for role, content in chat.turns]

    def put(count: int, more: bool = False) -> str:
        try:
            return tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=more)
        except Exception as error:  # templates raise what they like: of roles, of their order
            raise DataError(
                f"{name}: its chat template cannot put the messages {', '.join(role for role, _ in chat.turns)}: "
                f"{one_line(error)}."
            ) from error

    text = put(len(messages))
    answers = tuple(_answers(chat, text, put, name))
    return Rendered(text, answers, tuple(_contents(chat, text)), whole=True, closed=False)


def _answers(chat: Chat, text: str, put: Callable[..., str], name: str) -> Iterator[tuple[int, int]]:
    """Where the assistant's turns lie: between the text that asks for one and the text that ends with it."""
    for turn, (role, _) in enumerate(chat.turns):
        if role != "assistant":
            continue
        before, after = put(turn, more=True), put(turn + 1)
        if not text.startswith(before) or not (text.startswith(after) and len(after) > len(before)):
            raise DataError(
                f"{name}: its chat template puts a chat otherwise when it goes on, so turn {turn} (from 0) cannot be found "
                "in it: give chats that end with their first answer, or columns prompt and completion."
            )
        yield len(before), len(after)


def _contents(chat: Chat, text: str) -> Iterator[tuple[int, int]]:
    """Where the messages lie, without what stands around them, which many templates cut off."""
    start = 0
    for _, content in chat.turns:
        plain = content.strip()
        found = text.find(plain, start) if plain else -1
        if found < 0:  # changed by the template: no token of it has a counterpart
            yield start, start
            continue
        start = found + len(plain)
        yield found, start


def within(spans: Sequence[tuple[int, int]], end: int) -> int | None:
    """Which of the spans a token that ends before a character lies in; None for none.

    Example:
        >>> within([(0, 3), (5, 8)], 3), within([(0, 3), (5, 8)], 5)
        (0, None)
    """
    return next((index for index, (start, stop) in enumerate(spans) if start < end <= stop), None)
