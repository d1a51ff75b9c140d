"""X-LoRA: trained LoRA modules, mixed per token by a router.

Buehler and Buehler, "X-LoRA: Mixture of Low-Rank Adapter Experts", arXiv 2402.07148.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.affine import NotMergeable
from peftjax.core.method import AtInit, Key, Kind, Layer, Method, Params, check_rank
from peftjax.methods.composition import Composed, Composition, Module
from peftjax.methods.settings import check_count, check_flag


@dataclass(frozen=True)
class XLoRA(Method):
    """`y = x K + b + Σ_n g_n s_n (x A_n) B_n`, `g = softmax(h W + c)`.

    h is what the module `reads` returns in a first pass of the frozen model, which
    carries no gradient; where `reads` is empty, h is the layer's own input, and the
    method is a LoRA-MoE.

    Parameters: `a [N, in, r]`, `b [N, r, out]` and frozen `scale [N]` as in
    `Composition`, `router [hidden, N]` (W) and `router_bias [N]` (c), uniform on
    `±1/sqrt(hidden)` as torch's linear layer starts; float32. The modules are frozen
    and come from `XLoRA.of`, fresh ones are random and of no use; with `train` they
    start as LoRA's do.

    As in the torch library the router has one layer, and one for all layers serves
    (`share`) or each has its own, the library's `layerwise_scalings`. Its deeper
    routers, temperature, top-k, the scale of all modules and their dropout are left
    out. The layer merges with constant gates only.

    Attributes:
        modules: N.
        rank: r, the largest of the modules.
        hidden: width of h, None for that of the layer's own input.
        reads: path of a module outside of loops, whose output has the adapted layers'
            tokens; the paper reads the norm before the head.
        softmax: False for `g = h W + c`.
        share: one router for all layers.
        train: train the modules too.

    >>> method = XLoRA(modules=2, rank=1)
    >>> p = {"a": jnp.ones((2, 1, 1)), "b": jnp.array([[[3.0]], [[1.0]]]),
    ...      "scale": jnp.ones(2), "router": jnp.zeros((1, 2))}
    >>> p["router_bias"] = jnp.zeros(2)
    >>> method(p, jnp.ones((1, 1)), jnp.zeros((1, 1)))
    Array([[2.]], dtype=float32)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)
    float32: ClassVar[tuple[str, ...]] = ("scale", "router", "router_bias")
    gated: ClassVar[bool] = True

    modules: int
    rank: int
    hidden: int | None = None
    reads: str = ""
    softmax: bool = True
    share: bool = True
    train: bool = False

    def __post_init__(self) -> None:
        given = ["hidden"] if self.reads or self.hidden is not None else []
        check_count(self, "modules", "rank", *given)
        check_flag(self, "softmax", "share", "train")

    @property
    def heads(self) -> int:
        return self.modules

    @property
    def router_reads(self) -> str:
        return self.reads

    @property
    def frozen(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("scale",) if self.train else ("a", "b", "scale")

    @property
    def shared(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("router", "router_bias") if self.share else ()

    @property
    def at_init(self) -> AtInit:
        return "exact" if self.train else "none"

    def _width(self, layer: Layer) -> int:
        return self.hidden or layer.d_in

    def check(self, layer: Layer) -> None:
        check_rank("XLoRA", "rank", self.rank, layer)
        if not self.reads and self._width(layer) != layer.d_in:
            raise ValueError(
                f"{layer.path or 'layer'}: XLoRA(hidden={self.hidden}) reads the "
                f"layer's own input, of width {layer.d_in}; expected that as hidden"
            )

    def count(self, layer: Layer) -> int:
        """Return the parameters of the layer alone."""
        router = (not self.share) * (self._width(layer) + 1)
        module = self.train * self.rank * (layer.d_in + layer.d_out)
        return self.modules * (router + module)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        keys, n, width = jax.random.split(key, 3), self.modules, self._width(layer)
        p = Composition(n, self.rank, "uniform").init(keys[0], layer)
        if self.train:
            most = 1 / sqrt(layer.d_in)
            a = jax.random.uniform(keys[0], p["a"].shape, minval=-most, maxval=most)
            p |= {"a": a, "b": jnp.zeros_like(p["b"])}
        shapes, bound = {"router": (width, n), "router_bias": (n,)}, width**-0.5
        for draw, (name, shape) in zip(keys[1:], shapes.items()):
            p[name] = jax.random.uniform(draw, shape, minval=-bound, maxval=bound)
        return p

    def gates(self, p: Params, x: Any) -> jax.Array:
        """Return `g [..., N]`, float32, for `h [..., hidden]`."""
        logits = x.astype(jnp.float32) @ p["router"] + p["router_bias"]
        return jax.nn.softmax(logits, axis=-1) if self.softmax else logits

    def formula(
        self,
        p: Params,
        x: Any,
        kernel: Any,
        bias: Any,
        *,
        key: Key = None,
        gates: jax.Array | None = None,
    ):
        a, b = p["a"], p["b"]
        if gates is None:
            if self.reads:
                raise NotMergeable(f"XLoRA mixes by what {self.reads!r} returns")
            gates = self.gates(p, x)
        if gates.ndim > 1:  # of tokens, which x may have as rows
            gates = gates.reshape(*x.shape[:-1], -1)
        weight = jnp.repeat(gates * p["scale"], a.shape[-1], axis=-1).astype(b.dtype)
        low = x @ jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)
        return x @ kernel + bias + (low * weight) @ b.reshape(-1, b.shape[-1])

    @classmethod
    def of(
        cls,
        modules: Sequence[Module],
        hidden: int,
        reads: str,
        softmax: bool = True,
        share: bool = True,
        train: bool = False,
    ) -> Composed:
        """Return rules for trained LoRA modules, and their arrays.

        These go with a fresh router: `peft.combine(peft.init(key), xlora.adapters)`.

        Args:
            modules: as for `Composition.of`, in the order of the gates.
            hidden: as for `XLoRA`, like the others.
            reads: see there.
            softmax: see there.
            share: see there.
            train: see there.
        """
        rules: dict[str, Method] = {}
        found = Composition.of(modules, weights="uniform")
        for path, one in found.rules.items():
            assert isinstance(one, Composition)
            n, rank = one.modules, one.rank
            rules[path] = cls(n, rank, hidden, reads, softmax, share, train)
        return Composed(rules, found.adapters)
