"""HTML from Python: elements that escape what is put into them."""

from html import escape

Child = "Html | str | int | None"


class Html(str):
    """Text that is HTML already; any other text is escaped."""

    __slots__ = ()


VOID = ("meta", "br", "circle", "line", "path", "rect", "polyline", "use")
"""Elements that have no end tag, or are closed in themselves."""


def tag(name: str, /, *children: "Html | str | int | None", **attributes: "str | int | float | bool | None") -> Html:
    """An element. An attribute that is None or False is left out, one that is True has no value; `class_` is `class`, and an
    underscore is a hyphen.

    Example:
        >>> tag("td", "a < b", class_="num", scope=None)
        '<td class="num">a &lt; b</td>'
    """
    said = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        said += f" {key}" if value is True else f' {key}="{escape(_short(value), quote=True)}"'
    inner = join(*children)
    if name in VOID and not inner:
        return Html(f"<{name}{said}/>")
    return Html(f"<{name}{said}>{inner}</{name}>")


def join(*children: "Html | str | int | None") -> Html:
    """Several things one after the other; None is nothing."""
    return Html("".join(one if isinstance(one, Html) else escape(str(one)) for one in children if one is not None))


def _short(value: object) -> str:
    """Coordinates to a hundredth: a page has thousands of them."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def link_free(text: str) -> str:
    """A text with its back quotes taken off, as Markdown sets them around what is typed."""
    return text.replace("`", "")
