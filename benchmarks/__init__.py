"""Scripts that print a table of what was measured."""

import bico  # noqa: F401 - before NumPy is loaded, see there
