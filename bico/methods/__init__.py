"""The table of methods: one protocol, one small file per idea."""

from collections.abc import Callable

from bico.errors import UnknownMethodError, nearest
from bico.methods.bico import BiCo
from bico.methods.protocol import Method, Others, Pair
from bico.methods.theseus import Theseus
from bico.methods.unaligned import Crop, Naive, ZeroPad

METHODS: dict[str, Callable[..., Method]] = {method.name: method for method in (BiCo, Theseus, Naive, ZeroPad, Crop)}


def get_method(name: str) -> Method:
    """Returns a method by its name, with its default settings.

    Raises:
        UnknownMethodError: Naming the nearest valid name.
    """
    if name not in METHODS:
        raise UnknownMethodError(f"Unknown method {name!r}: {nearest(name, METHODS)}")
    return METHODS[name]()


__all__ = ["METHODS", "Method", "Others", "Pair", "get_method"]
