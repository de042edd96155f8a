"""LoRA adapters of the mini decoders, carried from one to another, beside all that they have to beat."""
