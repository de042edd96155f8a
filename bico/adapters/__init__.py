"""LoRA adapters: their files in PEFT's layout, and how they are carried from one base model to another.

Nothing here imports PEFT: a folder is JSON beside safetensors.
"""
