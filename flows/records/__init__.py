"""What a run leaves about itself, and a finished one asked for again."""
