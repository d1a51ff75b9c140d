"""Make the outputs and gradients of edits of what modules return, written in torch.

    pip install torch
    python tests/references/make_output_references.py tests/files/goldens

LoReFT: the equation of the authors' code, its rotation made by torch's own orthogonal
parametrisation; the gradient of v goes through torch's QR with positive diagonal.
Compacter: the sum of `torch.kron` that its paper writes, one A_i for both matrices.
Of every case the parameters, y, the result, and the gradients of its product with a
cotangent.
"""

import sys
from pathlib import Path

import numpy as np
import torch

WIDTH, RANK, TOKENS = 6, 3, 5


def found(result, leaves):
    """Return the arrays of a case."""
    cotangent = torch.randn(result.shape)
    (result * cotangent).sum().backward()
    arrays = {"result": result, "cotangent": cotangent, **leaves}
    arrays |= {f"d_{name}": leaf.grad for name, leaf in leaves.items()}
    return {name: value.detach().numpy() for name, value in arrays.items()}


class Rotation(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


def loreft():
    torch.manual_seed(0)
    y = torch.randn(2, TOKENS, WIDTH, requires_grad=True)
    v = torch.randn(WIDTH, RANK, requires_grad=True)
    source = torch.nn.Linear(WIDTH, RANK)
    q, triangle = torch.linalg.qr(v)
    r = q * triangle.diagonal().sign()
    result = y + (source(y) - y @ r) @ r.T
    rotation = torch.nn.utils.parametrizations.orthogonal(Rotation(r.detach().clone()))
    theirs = y + torch.matmul(source(y) - y @ rotation.weight, rotation.weight.T)
    torch.testing.assert_close(result, theirs)
    # their coordinates moved: still orthonormal, and no start
    with torch.no_grad():
        rotation.parametrizations.weight.original += 0.3 * torch.randn(WIDTH, RANK)
    moved = rotation.weight.detach()
    result_moved = y + torch.matmul(source(y) - y @ moved, moved.T)
    arrays = found(result, {"y": y, "v": v, "w": source.weight, "b": source.bias})
    also = {"moved": moved, "result_moved": result_moved.detach()}
    return arrays | {name: value.numpy() for name, value in also.items()}


def compacter():
    torch.manual_seed(1)
    n, r, width = 2, 2, 4
    low, high = width // n, WIDTH // n
    shapes = {
        "a": (n, n, n),
        "down_s": (n, high, r),
        "down_t": (n, r, low),
        "down_bias": (width,),
        "up_s": (n, low, r),
        "up_t": (n, r, high),
        "up_bias": (WIDTH,),
    }
    p = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
    y = torch.randn(2, TOKENS, WIDTH, requires_grad=True)

    def matrix(side):
        parts = zip(p["a"], p[f"{side}_s"] @ p[f"{side}_t"])
        return sum(torch.kron(a, b) for a, b in parts)

    h = torch.nn.functional.gelu(y @ matrix("down") + p["down_bias"])
    return found(y + h @ matrix("up") + p["up_bias"], {"y": y, **p})


if __name__ == "__main__":
    for case in (loreft, compacter):
        arrays = case()
        np.savez_compressed(Path(sys.argv[1], f"{case.__name__}.npz"), **arrays)
        print({name: value.shape for name, value in arrays.items()})
