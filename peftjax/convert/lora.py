"""Any mergeable adapter as a LoRA, by singular values of its delta."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.axes import arrange
from peftjax.core.method import Method
from peftjax.core.paths import flatten
from peftjax.core.peft import Peft
from peftjax.core.site import Adapters, Site
from peftjax.methods.full import Full
from peftjax.methods.lora import LoRA


class Converted(NamedTuple):
    """What `to_lora` returns.

    Attributes:
        rules: for `adapt` on the same model.
        adapters: their adapters.
        errors: per site, `‖Δ − A B‖ / ‖Δ‖` (Frobenius), over all stacked layers.
    """

    rules: dict[str, Method]
    adapters: Adapters
    errors: dict[str, float]


def to_lora(
    peft: Peft,
    adapters: Adapters,
    *,
    rank: int | None = None,
    energy: float | None = None,
    variables: Any = None,
    gates: Any = None,
) -> Converted:
    """Return the LoRA nearest to an adapter, with the error of each site.

    The delta `Δ = K' − K` is factorised by SVD; the result is exact where the rank
    suffices. A bias that the adapter changes becomes a `Full` leaf.

    Args:
        peft: the plan.
        adapters: its adapters.
        rank: of every site; or
        energy: the share of `‖Δ‖²` to keep, 0 < energy <= 1; each site gets the
            smallest rank that keeps it in all its stacked layers.
        variables: the frozen model; by default those given to `adapt`.
        gates: for gated methods, as in `merge`.

    Raises:
        ValueError: neither or both of rank and energy; a rank above a weight's limit.
        NotMergeable: an adapter that cannot be merged.

    >>> import flax.linen as nn
    >>> from peftjax.core.peft import adapt
    >>> model, x = nn.Dense(4), jnp.ones((1, 6))
    >>> variables = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, variables, x, rules={"kernel": LoRA(3, alpha=9.0)})
    >>> adapters = {"kernel": {"a": jnp.eye(6)[:, :3], "b": jnp.eye(4)[:3]}}
    >>> found = to_lora(peft, adapters, rank=3)
    >>> found.rules, round(found.errors["kernel"], 5)
    ({'kernel': LoRA(rank=3, alpha=3.0, rs=False, dropout=0.0)}, 0.0)
    """
    if (rank is None) == (energy is None):
        raise ValueError("to_lora: expected one of rank and energy")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"to_lora: expected 0 < energy <= 1, found {energy}")
    base = peft.base if variables is None else variables
    wide = jax.tree.map(_widen, base)
    before = dict(zip(*flatten(wide)[:2]))
    after = dict(zip(*flatten(peft.merge(wide, adapters, gates))[:2]))
    found = Converted({}, {}, {})
    for site in peft.sites:
        found.rules[re.escape(site.path)] = site.method
        if site.method.replaces:
            found.adapters[site.path] = dict(adapters[site.path])
            continue
        delta = after[site.path] - before[site.path]
        delta = arrange(delta, site.stored, site.groups)
        p, error = _factorise(site, delta, rank, energy)
        size = p["a"].shape[-1]
        found.rules[re.escape(site.path)] = LoRA(size, alpha=float(size))
        found.adapters[site.path], found.errors[site.path] = p, error
    for site in peft.sites:
        if site.bias and site.bias not in found.adapters:
            if not np.array_equal(after[site.bias], before[site.bias]):
                found.rules[re.escape(site.bias)] = Full()
                found.adapters[site.bias] = {"value": after[site.bias]}
    return found


def _widen(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.promote_types(leaf.dtype, "float32")) if floating else leaf


def _factorise(
    site: Site, delta: jax.Array, rank: int | None, energy: float | None
) -> tuple[dict[str, jax.Array], float]:
    """Return the factors of `delta [*stack, in, out]` and the relative error."""
    limit = min(site.d_in, site.d_out)
    if rank is not None and not 1 <= rank <= limit:
        raise ValueError(
            f"{site.path}: to_lora(rank={rank}) does not fit a [{site.d_in}, "
            f"{site.d_out}] weight: expected 1 <= rank <= {limit}"
        )
    u, s, vt = jnp.linalg.svd(delta, full_matrices=False)
    squares = np.asarray(s, np.float64) ** 2
    if rank is None:
        total = squares.sum(-1, keepdims=True)
        kept = np.cumsum(squares, -1) >= energy * total * (1 - 1e-9)
        rank = int(kept.argmax(-1).max()) + 1
    root = jnp.sqrt(s[..., :rank])
    p = {
        "a": u[..., :rank] * root[..., None, :],
        "b": root[..., None] * vt[..., :rank, :],
    }
    error = np.sqrt(squares[..., rank:].sum() / max(squares.sum(), 1e-300))
    return p, float(error)
