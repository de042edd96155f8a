"""How fast this machine multiplies matrices, by library and precision.

    python -m benchmarks.products [--clock cpu]

Shapes are those of the covariances of a ViT-B/16 at 32 pictures (6304 rows), and of products within a map. `torch` is what
`a @ b` takes in PyTorch, `product` is `bico.linalg.matmul`; bfloat16 is PyTorch's, of operands that are bfloat16 already.
GFLOP/s, medians of five.
"""

import argparse

import torch

from benchmarks.measure import Clock, machine, table
from bico.linalg.matmul import product

SHAPES = [(768, 6304, 768), (768, 6304, 3072), (3072, 6304, 3072), (3072, 3072, 3072)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    Clock.add_option(parser)
    clock, rows = Clock(parser.parse_args().clock), []
    for m, k, n in SHAPES:
        a, b = torch.randn(k, m).T, torch.randn(k, n)
        rates = []
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            left, right = a.to(dtype), b.to(dtype)
            for way in (torch.matmul, product) if dtype != torch.bfloat16 else (torch.matmul,):
                way(left, right)
                seconds = clock.median(lambda way=way, left=left, right=right: way(left, right), 5)
                rates.append(f"{2 * m * k * n / seconds / 1e9:.0f}")
        rows.append([f"{m} × {k} × {n}", *rates])
    print(f"{machine()}. {clock}.\n")
    names = ["torch float32", "product float32", "torch float64", "product float64", "torch bfloat16"]
    print(table(["GFLOP/s", *names], rows))


if __name__ == "__main__":
    main()
