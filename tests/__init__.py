"""The suite runs the library under a checker of shapes and types (see `pyproject.toml`)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as everywhere in Python
