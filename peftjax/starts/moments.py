"""What a layer reads, over data: the second moments of its input.

The model is adapted by a method that changes nothing and has one array, whose gradient
is what is looked for. So it is read wherever layers are adapted, in loops and on a
mesh, by one compiled program for each shape of batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Kind, Layer, Method, Params
from peftjax.core.peft import Peft, adapt
from peftjax.core.site import Site

HIGHEST = jax.lax.Precision.HIGHEST
Batch = tuple[Any, ...] | Mapping[str, Any]
SomeMethod = TypeVar("SomeMethod", bound=Method)


@jax.custom_vjp
def _read(y: jax.Array, total: jax.Array, x: jax.Array) -> jax.Array:
    """Return y; the cotangent of `total [in + 1, in + 1]` is `[x, 1]ᵀ [x, 1]`."""
    return y


def _forward(y: jax.Array, total: jax.Array, x: jax.Array) -> Any:
    return y, x


def _backward(x: jax.Array, cotangent: jax.Array) -> Any:
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
    return cotangent, jnp.matmul(rows.T, rows, precision=HIGHEST), jnp.zeros_like(x)


_read.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Reader(Method):
    """`y = x K + b`, and the moments of x as the gradient of `total`.

    Attributes:
        by_largest: x is divided by its largest entry in the batch first.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)
    float32: ClassVar[tuple[str, ...]] = ("total",)

    by_largest: bool = False

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        return {"total": jnp.zeros((layer.d_in + 1, layer.d_in + 1))}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        seen = x / jnp.abs(x.max()) if self.by_largest else x
        return _read(x @ kernel + bias, p["total"], seen)


def moments(
    peft: Peft,
    sites: Iterable[tuple[Site, Method]],
    variables: Any,
    batches: Iterable[Batch],
    *,
    by_largest: bool = False,
) -> tuple[dict[str, jax.Array], int]:
    """Return the sums of `[x, 1]ᵀ [x, 1]` over all tokens, and how many batches.

    Args:
        peft: the plan whose model is run.
        sites: of it, with their methods; their inputs are read.
        variables: the model's.
        batches: of each the arguments of the model after its variables: a tuple, or a
            mapping of keywords.
        by_largest: divide what a layer reads by its largest entry in each batch.

    Returns:
        `{path: [*stack, in + 1, in + 1]}` float32.

    Raises:
        ValueError: there are no batches, a site has no part in the output, or is read
            by more than a product.
    """
    reader = _Reader(by_largest)
    rules = {re.escape(site.path): reader for site, _ in sites}

    @jax.jit
    def add(totals: Any, variables: Any, args: Any, kwargs: Any) -> Any:
        def summed(zeros: Any) -> jax.Array:
            found = jax.tree.leaves(plan.apply(variables, zeros, *args, **kwargs))
            floats = [x for x in found if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum((x.astype(jnp.float32).sum() for x in floats), jnp.zeros(()))

        zeros = jax.tree.map(jnp.zeros_like, totals)
        return jax.tree.map(jnp.add, totals, jax.grad(summed)(zeros))

    count, totals, plan = 0, None, peft
    for batch in batches:
        args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch, {})
        if totals is None:
            plan = adapt(
                peft.apply_fn, variables, *args, rules=rules, strict=True, **kwargs
            )
            totals = plan.init(jax.random.key(0))
        totals = add(totals, variables, tuple(args), dict(kwargs))
        count += 1
    if totals is None:
        raise ValueError("batches: expected at least one, found none")
    found = {path: p["total"] for path, p in totals.items()}
    for path, total in found.items():
        if not float(total[..., -1, -1].min()) > 0:
            raise ValueError(
                f"{path}: has no part in the output of these batches, or reads what is "
                "not finite; leave it out of the rules"
            )
    return found, count


def dense_sites(
    peft: Peft, kind: type[SomeMethod], what: str
) -> list[tuple[Site, SomeMethod]]:
    """Return the sites of a method, all of dense layers, each with its method.

    Raises:
        ValueError: there is none, or one of another kind of layer.
    """
    pairs = [(site, site.method) for site in peft.sites]
    found = [(site, own) for site, own in pairs if isinstance(own, kind)]
    others = [site for site, _ in found if site.kind != "dense"]
    if not found or others:
        at = f"{others[0].path}: a {others[0].kind} layer" if others else "none"
        raise ValueError(
            f"{what}: expected dense layers of {kind.__name__}; found {at}"
        )
    return found
