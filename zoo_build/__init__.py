"""How the mini models of `zoo/` were made: pictures, captions and texts, pre-training, measurements.

Nothing in `bico` imports this; using the models takes none of it.
"""
