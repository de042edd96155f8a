"""What a run is asked to do, what of it is there already, and what the rest will cost."""
