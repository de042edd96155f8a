"""The method and its measurements: pure functions of models and tensors."""

import os

# OpenBLAS' threads wait for their next product by turning in circles, for 20 ms unless told otherwise: on cores that
# PyTorch's threads want meanwhile, which makes collecting on two cores 1.6 times as slow, and small maps 4 times. It reads
# this when NumPy and SciPy load it, so a program that imports those before `bico` should set it by itself.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")  # 2^16 clock cycles
