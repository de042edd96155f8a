"""What arrays are called inside an artefact."""

from bico.calibration.signals import Signal


def array_name(tensor: str, signal: Signal, samples: int) -> str:
    return f"{tensor}/{signal}/{samples}"
