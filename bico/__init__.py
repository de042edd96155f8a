"""The method and its measurements: pure functions of models and tensors.

What most programs need is here, and is imported when it is first asked for:

    rehome                         from models, an expert and data to a result (docs/recipes.md)
    wrap, transfer, batches        carry a task vector between two modules of your own (docs/your-own-model.md)
    METHODS, get_method            the methods by name
    load_classifier                an exported model with the classifier that came with it
    task_vector                    subtract, add, scale: task vectors as dictionaries of tensors
    BicoError                      the root of all errors that the user can mend
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# OpenBLAS' threads wait for their next product by turning in circles, for 20 ms unless told otherwise: on cores that
# PyTorch's threads want meanwhile, which makes collecting on two cores 1.6 times as slow, and small maps 4 times. It reads
# this when NumPy and SciPy load it, so a program that imports those before `bico` should set it by itself.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")  # 2^16 clock cycles

if TYPE_CHECKING:
    from bico import task_vector
    from bico.calibration.covariances import Batch
    from bico.calibration.loaders import batches
    from bico.errors import BicoError
    from bico.evaluation.classifier import load_classifier
    from bico.methods import METHODS, get_method
    from bico.models.wrapped import wrap
    from bico.rehoming.call import rehome
    from bico.rehoming.in_memory import transfer

    __version__: str

__all__ = [
    "METHODS",
    "Batch",
    "BicoError",
    "__version__",
    "batches",
    "get_method",
    "load_classifier",
    "rehome",
    "task_vector",
    "transfer",
    "wrap",
]

_HOMES = {
    "METHODS": "bico.methods",
    "Batch": "bico.calibration.covariances",
    "BicoError": "bico.errors",
    "batches": "bico.calibration.loaders",
    "get_method": "bico.methods",
    "load_classifier": "bico.evaluation.classifier",
    "rehome": "bico.rehoming.call",
    "transfer": "bico.rehoming.in_memory",
    "wrap": "bico.models.wrapped",
}


def __getattr__(name: str) -> Any:
    if name == "task_vector":
        return importlib.import_module("bico.task_vector")
    if name == "__version__":
        return _version()
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bico' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # a tenth of a second that few programs need

    try:
        return version("bico")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
