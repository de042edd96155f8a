"""Models: a table of families (`families.py`), and how a reference such as `zoo:mini-a` becomes a model."""
