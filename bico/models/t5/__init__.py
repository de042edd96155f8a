"""T5 encoders of transformers."""
