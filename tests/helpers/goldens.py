"""Reference vectors, and one layer put through every way a formula is evaluated."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj

FOLDER = Path(__file__).parents[1] / "files" / "goldens"
KEY = jax.random.key(0)


def load(name: str) -> dict[str, Any]:
    """Return the arrays of a file; torch names lose the prefix of the test layer."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key.replace("base_model.model.lin.", ""): file[key] for key in file}
    return {key.replace(".default", ""): value for key, value in arrays.items()}


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


def check_dense(method: pj.Method, p: Any, layer: dict[str, Any], merge=True) -> None:
    """Compare direct call, `apply` and `merge` of one Dense layer with a reference.

    Args:
        method: the adapter.
        p: its arrays.
        layer: `x`, torch `weight [out, in]`, `y`, and optionally `bias`,
            `merged_weight`, `merged_bias`.
        merge: whether the layer merges.
    """
    p = {name: jnp.asarray(value) for name, value in p.items()}
    x, kernel, bias = layer["x"], layer["weight"].T, layer.get("bias")
    model = nn.Dense(kernel.shape[1], use_bias=bias is not None)
    params = {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}
    variables = {"params": params}
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": method}, strict=True)

    @jax.jit
    def run(p: Any) -> tuple[Any, Any, Any]:
        adapters = {"kernel": {n: p[n] for n in p if n not in method.shared}}
        adapters |= {"": {n: p[n] for n in method.shared}} if method.shared else {}
        merged = peft.merge(variables, adapters) if merge else variables
        applied = peft.apply(variables, adapters, x)
        return method(p, x, kernel, bias), applied, (merged, model.apply(merged, x))

    direct, applied, (merged, y) = run(p)
    close(direct, layer["y"])
    close(applied, layer["y"])
    if not merge:
        return
    close(y, layer["y"])
    for name, key in (("merged_weight", "kernel"), ("merged_bias", "bias")):
        if name in layer and key in params:
            close(merged["params"][key].T, layer[name])


def gradients(method: pj.Method, p: Any, layer: dict[str, Any]) -> Any:
    """Return d sum(y · cotangent) / d p of the direct call; of floating arrays."""
    p = {name: jnp.asarray(value) for name, value in p.items()}
    whole = {n: v for n, v in p.items() if not jnp.issubdtype(v.dtype, jnp.floating)}

    @jax.jit
    @jax.grad
    def gradient(p: Any) -> jax.Array:
        y = method({**p, **whole}, layer["x"], layer["weight"].T, layer.get("bias"))
        return jnp.sum(y * layer["cotangent"])

    return gradient({name: value for name, value in p.items() if name not in whole})


def conv_case(method: pj.Method, layer: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return the plan, variables and input of the torch test convolution (stride 2)."""
    weight = layer["weight"].transpose(2, 3, 1, 0)
    kh, kw, _, out = weight.shape
    model = nn.Conv(out, (kh, kw), strides=2, padding=1)
    variables = {"params": {"kernel": weight, "bias": layer["bias"]}}
    x = layer["x"].transpose(0, 2, 3, 1)
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": method}, strict=True)
    return peft, variables, x


def conv_rows(u: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Bring rows in torch's order (c, h, w) to Flax's (h, w, c), `[kh*kw*c_in, r]`."""
    _, c, h, w = weight.shape
    return u.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(c * h * w, -1)


def random_like(p: Any, seed: int = 1) -> Any:
    """Return arrays of the same shapes, all entries non-zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        ),
        p,
    )


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[jax.Array]:
    """Return standard normal arrays of the given shapes."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
