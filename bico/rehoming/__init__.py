"""A transfer in one call and in memory: of models, an expert and data (`call`), or of models and batches (`in_memory`)."""
