"""How good a model is on a task: accuracy by its own head, by a linear probe, or by a linear head that came with it."""
