"""CLIP image towers of open_clip."""
