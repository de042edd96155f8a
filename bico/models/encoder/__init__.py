"""Text encoders of transformers, bare or in a folder of sentence-transformers."""
