"""Libraries that only some families need: asked for when a model is, and missing in one line."""

from importlib.util import find_spec

from bico.errors import ConfigError


def require(library: str, extra: str, ref: str) -> None:
    """Raises ConfigError, naming what to install, unless a library can be imported.

    Arguments:
        library: The module that is imported.
        extra: The extra of this project that brings it.
        ref: The model that needs it.
    """
    if find_spec(library) is None:
        raise ConfigError(
            f"{ref}: models of this family need {library}, which is not installed: pip install 'bico[{extra}]'."
        )
