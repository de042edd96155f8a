"""Decoder language models of transformers."""
