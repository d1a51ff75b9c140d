"""LoRA modules to compose or combine: those of reference files, and mixed ones."""

import jax.numpy as jnp

from peftjax.methods.lora import LoRA
from tests.helpers.goldens import arrays, load

PATH = "kernel"


def modules_of(golden, alpha=None):
    """Return the pairs of a file; `alpha` where all modules share one."""
    modules = []
    for i in range(3):
        key = f"adapter.a{i}.lora_{{}}.weight"
        a, b = golden[key.format("A")].T, golden[key.format("B")].T
        scale = float(alpha or golden["alphas"][i])
        p = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        modules.append((LoRA(a.shape[1], alpha=scale), p))
    return modules


def trees(modules):
    return [(method, {PATH: p}) for method, p in modules]


def delta(combined):
    method, p = combined
    return method.scale * p["a"] @ p["b"]


def mixed():
    """Three modules of different rank and alpha on a 6 by 5 layer."""
    modules = []
    for i, (rank, alpha) in enumerate([(2, 6.0), (1, 3.0), (3, 4.0)]):
        a, b = arrays((6, rank), (rank, 5), seed=i)
        modules.append((LoRA(rank, alpha=alpha), {"a": a, "b": b}))
    return modules, arrays((4, 6), (6, 5), (5,), seed=9)


def torch():
    """Return the torch library's file and its three modules of rank 4."""
    golden = load("composition_peft_equalrank")
    return golden, modules_of(golden)
