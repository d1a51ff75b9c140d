"""Read the mean gates of a model: what depends on x, averaged over given data.

A gate is known only inside a layer, perhaps inside a scan. It is carried out as the
gradient of an array of zeros, the one way out of every transform: `observe` passes its
first argument through and gives that array the gate's sum as its cotangent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.method import Method


@jax.custom_vjp
def observe(y: jax.Array, total: jax.Array, gates: jax.Array) -> jax.Array:
    """Return y; the cotangent of `total [heads + 1]` is the gates' sum and their count.

    Args:
        y: any array.
        total: `[heads + 1]`, zeros.
        gates: `[..., heads]`.
    """
    return y


def _forward(y: jax.Array, total: jax.Array, gates: jax.Array) -> Any:
    flat = gates.reshape(-1, gates.shape[-1])
    count = jnp.full((1,), flat.shape[0], flat.dtype)
    return y, (jnp.concatenate([flat.sum(0), count]), gates)


def _backward(residual: Any, cotangent: jax.Array) -> Any:
    total, gates = residual
    return cotangent, total, jnp.zeros_like(gates)


observe.defvjp(_forward, _backward)


def foreign_gates(method: Method) -> dict[str, jax.Array]:
    """Return what a formula is given where its gates come from another module."""
    if not method.router_reads:
        return {}
    return {"gates": jnp.ones(getattr(method, "heads"))}  # noqa: B009 (a field by contract)


def constant_gates(heads: Mapping[str, Any], gates: Any) -> dict[str, jax.Array]:
    """Return the gates `[*stack, heads]` of each site that `merge` was given.

    Args:
        heads: `{path: (*stack, heads)}` of the gated sites.
        gates: None, `"uniform"`, `[heads]` for all sites, or `{path: gates}`.

    Raises:
        ValueError: unknown or missing paths, wrong shapes, or values that are not
            finite.
    """
    if gates is None:
        return {}
    if not heads and not isinstance(gates, Mapping):
        raise ValueError("gates: expected None, for no site of the plan has gates")
    given = gates if isinstance(gates, Mapping) else dict.fromkeys(heads, gates)
    if given.keys() != heads.keys():
        missing = sorted(heads.keys() - given.keys())[:5]
        extra = sorted(given.keys() - heads.keys())[:5]
        raise ValueError(
            f"gates: missing {missing or 'nothing'}, unexpected {extra or 'nothing'}; "
            "expected one entry for each site with gates"
        )
    return {path: _constant(path, heads[path], given[path]) for path in heads}


def _constant(path: str, shape: tuple[int, ...], given: Any) -> jax.Array:
    if isinstance(given, str):
        if given != "uniform":
            raise ValueError(f"gates: expected 'uniform' or arrays, found {given!r}")
        return jnp.full(shape, 1 / shape[-1])
    array = jnp.asarray(given, jnp.float32)
    if array.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"{path}: expected gates of shape {list(shape)} or {[shape[-1]]}, found "
            f"{list(array.shape)}"
        )
    try:
        finite = bool(jnp.all(jnp.isfinite(array)))
    except jax.errors.ConcretizationTypeError:  # being traced
        finite = True
    if not finite:
        raise ValueError(
            f"{path}: expected finite gates, found {array}; mean gates are NaN where a "
            "site has no part in the output: give that site gates of your own"
        )
    return jnp.broadcast_to(array, shape)


def mean_gates(
    run: Callable[[dict[str, jax.Array]], Any], zeros: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return the mean gates of each site, `[*stack, heads]` float32.

    Args:
        run: a forward pass, given the arrays of zeros by site.
        zeros: `{path: [*stack, heads + 1]}`.
    """

    def total(zeros: dict[str, jax.Array]) -> jax.Array:
        outputs = jax.tree.leaves(run(zeros))
        floats = [o for o in outputs if jnp.issubdtype(o.dtype, jnp.floating)]
        return jnp.sum(jnp.stack([jnp.sum(o.astype(jnp.float32)) for o in floats]))

    found = jax.grad(total)(zeros)
    return {path: sums[..., :-1] / sums[..., -1:] for path, sums in found.items()}
