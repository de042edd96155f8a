"""Real pre-trained text encoders: how they are fetched, checked, and what is measured on them (docs/real.md)."""
