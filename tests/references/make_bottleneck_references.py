"""Make the outputs and gradients of bottleneck adapters written with torch's modules.

    pip install torch
    python tests/references/make_bottleneck_references.py tests/files/goldens

Houlsby's, in series with an exact GELU, and AdaptFormer's, beside a module with a ReLU
and a scale of 0.1, each `Linear`, activation, `Linear`. Of every case, by its name, the
parameters (torch's layout), x and y, the result, and the gradients of its product with
a cotangent.
"""

import sys
from pathlib import Path

import numpy as np
import torch

CASES = {"serial": (6, torch.nn.GELU(), 1.0), "parallel": (5, torch.nn.ReLU(), 0.1)}
RANK, OUT = 3, 6


def main(folder):
    arrays = {}
    for seed, (name, (width, activation, scale)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        down, up = torch.nn.Linear(width, RANK), torch.nn.Linear(RANK, OUT)
        torch.nn.init.normal_(up.weight)
        x = torch.randn(4, 7, 5, requires_grad=True)
        y = torch.randn(4, 7, OUT, requires_grad=True)
        cotangent = torch.randn(4, 7, OUT)
        result = y + scale * up(activation(down(y if name == "serial" else x)))
        (result * cotangent).sum().backward()
        leaves = {
            "x": x,
            "y": y,
            "down": down.weight,
            "down_bias": down.bias,
            "up": up.weight,
            "up_bias": up.bias,
        }
        found = {"result": result, "cotangent": cotangent, **leaves}
        arrays |= {f"{name}/{key}": v.detach().numpy() for key, v in found.items()}
        arrays |= {
            f"{name}/d_{key}": v.grad.numpy()
            for key, v in leaves.items()
            if v.grad is not None
        }
    np.savez_compressed(folder / "bottleneck.npz", **arrays)
    print({key: value.shape for key, value in arrays.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
