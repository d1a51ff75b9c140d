"""Composition: a weighted average of trained LoRA modules.

Asadi et al., "Does Combining Parameter-efficient Modules Improve Few-shot Transfer
Accuracy?", arXiv 2402.15414. Rules that give one LoRA are in `peftjax.convert.combine`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.core.method import AtInit, Key, Layer, Method, Params, check_rank, dropout
from peftjax.methods.lora import LoRA
from peftjax.methods.settings import (
    check_choice,
    check_count,
    check_flag,
    check_numbers,
)

Adapters = Mapping[str, Mapping[str, jax.Array]]
Module = tuple[Method | Mapping[str, Method], Adapters]


@dataclass(frozen=True)
class Composition(Method):
    """`y = x K + b + Σ_n w_n s_n (x A_n) B_n`, with `w = softmax(v)` over N modules.

    Parameters: frozen `a [N, in, r]`, `b [N, r, out]`, `scale [N]` (s, each module's
    alpha / rank), modules of lower rank padded with zeros; `logits [N]` (v), trainable,
    where the weights are learned. Float32. Products are averaged, never A and B apart.

    `Composition.of` builds it from trained modules; fresh parameters are N random ones,
    of the right shapes and no use. Whether the paper has one v per layer or one for the
    model is not known to us; the authors' code has one per layer.

    Attributes:
        modules: N.
        rank: the largest rank.
        weights: `"learned"` (v, ones at first, so uniform), `"uniform"`, 1/N, or N
            given numbers, used as they are.
        share: one vector of logits for all layers, under the path `""`, instead of one
            for each.
        dropout: of each module's input while training, as the modules have it; empty
            for none.

    Departures:
        detach_denominator: leave the denominator of the softmax out of the gradient, as
            the released code does.

    >>> import jax.numpy as jnp
    >>> method = Composition(modules=2, rank=1, weights=(1.0, -1.0))
    >>> p = {"a": jnp.ones((2, 1, 1)), "b": jnp.array([[[3.0]], [[2.0]]]),
    ...      "scale": jnp.ones(2)}
    >>> method(p, jnp.ones((1, 1)), jnp.zeros((1, 1)))
    Array([[1.]], dtype=float32)
    """

    frozen: ClassVar[tuple[str, ...]] = ("a", "b", "scale")

    modules: int
    rank: int
    weights: Literal["learned", "uniform"] | tuple[float, ...] = "learned"
    share: bool = False
    detach_denominator: bool = False
    dropout: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_count(self, "modules", "rank")
        check_flag(self, "share", "detach_denominator")
        rates = check_numbers(self, "dropout")
        if len(rates) not in (0, self.modules) or not all(0 <= r < 1 for r in rates):
            raise ValueError(
                f"Composition(dropout={self.dropout!r}): expected {self.modules} "
                "numbers 0 <= dropout < 1, or none"
            )
        if isinstance(self.weights, str):
            check_choice(self, "weights", ("learned", "uniform"))
            return
        weights = tuple(map(float, check_numbers(self, "weights")))
        object.__setattr__(self, "weights", weights)
        if len(weights) != self.modules:
            raise ValueError(
                f"Composition(weights={self.weights!r}): expected {self.modules} "
                "finite numbers, one for each module"
            )

    @property
    def at_init(self) -> AtInit:
        return "none"

    @property
    def shared(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("logits",) if self._learned and self.share else ()

    @property
    def float32(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("scale", "logits") if self._learned else ("scale",)

    @property
    def _learned(self) -> bool:
        return self.weights == "learned"

    def check(self, layer: Layer) -> None:
        check_rank("Composition", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        """Return N for learned weights of a layer, else 0."""
        return self.modules if self._learned and not self.shared else 0

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        key_a, key_b = jax.random.split(key)
        shape_a = (self.modules, layer.d_in, self.rank)
        shape_b = (self.modules, self.rank, layer.d_out)
        p = {
            "a": jax.random.normal(key_a, shape_a) / sqrt(layer.d_in),
            "b": jax.random.normal(key_b, shape_b) / sqrt(self.rank),
            "scale": jnp.ones(self.modules),
        }
        return {**p, "logits": jnp.ones(self.modules)} if self._learned else p

    def mixture(self, p: Params) -> jax.Array:
        """Return the weights w, `[N]` float32."""
        if self.weights == "uniform":
            return jnp.full(self.modules, 1 / self.modules)
        if not self._learned:
            return jnp.array(self.weights, jnp.float32)
        v = p["logits"].astype(jnp.float32)
        if not self.detach_denominator:
            return jax.nn.softmax(v)
        e = jnp.exp(v - jax.lax.stop_gradient(v.max()))
        return e / jax.lax.stop_gradient(e.sum())

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        a, b = p["a"], p["b"]
        weight = jnp.repeat(self.mixture(p) * p["scale"], a.shape[-1]).astype(b.dtype)
        if key is None or not any(self.dropout):
            low = x @ jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1)
        else:
            drawn = zip(a, self.dropout, jax.random.split(key, self.modules))
            parts = [dropout(x, rate, own) @ module for module, rate, own in drawn]
            low = jnp.concatenate(parts, axis=-1)
        return x @ kernel + bias + (low * weight) @ b.reshape(-1, b.shape[-1])

    @classmethod
    def of(
        cls,
        modules: Sequence[Module],
        weights: Literal["learned", "uniform"] | Sequence[float] = "learned",
        share: bool = False,
        detach_denominator: bool = False,
    ) -> Composed:
        """Compose trained modules: rules for `adapt`, and the adapters they start from.

        Args:
            modules: `(method, adapters)` pairs, method a LoRA or rules as for `adapt`;
                `peftjax.hub.read_module` reads one from a file. Leaves trained by
                `Full` (a head) are left out: a new task has a new head.
            weights: as for `Composition`.
            share: as for `Composition`.
            detach_denominator: as for `Composition`.

        Raises:
            ValueError: no modules, or modules that differ in sites or shapes.

        >>> import jax.numpy as jnp
        >>> a = {"fc/kernel": {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}}
        >>> b = {"fc/kernel": {"a": jnp.ones((3, 1)), "b": jnp.ones((1, 4))}}
        >>> modules = [(LoRA(2, alpha=4.0), a), (LoRA(1, alpha=3.0), b)]
        >>> composed = Composition.of(modules)
        >>> composed.rules
        {'fc/kernel': Composition(modules=2, rank=2, weights='learned', ...)}
        >>> composed.adapters["fc/kernel"]["scale"]
        Array([2., 3.], dtype=float32)
        """
        given = weights if isinstance(weights, str) else tuple(weights)
        rules: dict[str, Method] = {}
        adapters: dict[str, dict[str, jax.Array]] = {}
        for path, members in sites(modules).items():
            rank = max(p["a"].shape[-1] for _, p in members)
            rates = tuple(lora.dropout for lora, _ in members)
            method = cls(
                len(members),
                rank,
                given,
                share,
                detach_denominator,
                rates if any(rates) else (),
            )
            rules[re.escape(path)] = method
            p = _stack(members, rank)
            if method._learned:
                p["logits"] = jnp.ones_like(p["scale"])
            for name in method.shared:
                adapters[""] = {name: jnp.ones(len(members))}
                del p[name]
            adapters[path] = p
        return Composed(rules, adapters)


class Composed(NamedTuple):
    """What `Composition.of` returns.

    Attributes:
        rules: one exact path each; add those of the head.
        adapters: `{path: {name: array}}`; the head's come from `peft.init`, as in
            `{**peft.init(key), **composed.adapters}`.
    """

    rules: dict[str, Method]
    adapters: dict[str, dict[str, jax.Array]]


def sites(
    modules: Sequence[Module],
) -> dict[str, list[tuple[LoRA, Mapping[str, jax.Array]]]]:
    """Return, for each path, every module's `(LoRA, {"a", "b"})` there.

    Args:
        modules: as for `Composition.of`.

    Raises:
        ValueError: no modules, something other than LoRA, or modules that differ in
            sites or shapes.
    """
    if not modules:
        raise ValueError("no modules to compose: expected at least one")
    loaded = [_lora_sites(index, module) for index, module in enumerate(modules)]
    first = loaded[0]
    for index, other in enumerate(loaded[1:], 1):
        if missing := sorted(set(first) ^ set(other)):
            side = "lacks" if missing[0] in first else "alone has"
            raise ValueError(
                f"module {index} {side} the site {missing[0]!r}: modules to compose "
                "must adapt the same layers"
            )
        for path, (_, p) in other.items():
            expected, found = _layer_shape(first[path][1]), _layer_shape(p)
            if expected != found:
                raise ValueError(
                    f"{path}: module {index} adapts a layer [*stack, in, out] of shape "
                    f"{found}, expected {expected} as in module 0"
                )
    return {path: [module[path] for module in loaded] for path in first}


def _lora_sites(index: int, module: Module) -> dict[str, Any]:
    """Return path to `(LoRA, {"a", "b"})` of one module, leaving out `Full` leaves."""
    if isinstance(module, str | os.PathLike):
        raise ValueError(
            f"module {index}: expected (method, adapters), found the path {module!s}; "
            "peftjax.hub.read_module reads an adapter file"
        )
    method, adapters = module
    found: dict[str, Any] = {}
    for path, p in adapters.items():
        if set(p) == {"value"}:
            continue
        own = method if isinstance(method, Method) else _first_match(method, path)
        if not isinstance(own, LoRA) or set(p) != {"a", "b"}:
            raise ValueError(
                f"{path}: module {index} holds {own} with arrays {sorted(p)}; only "
                "LoRA modules (a, b) can be composed"
            )
        if p["a"].shape[-1] != own.rank or p["b"].shape[-2] != own.rank:
            raise ValueError(
                f"{path}: module {index} has rank {own.rank}, found "
                f"a {p['a'].shape} and b {p['b'].shape}"
            )
        found[path] = own, p
    if not found:
        raise ValueError(f"module {index} adapts no layer with LoRA")
    return found


def _first_match(rules: Mapping[str, Method], path: str) -> Method | None:
    hits = (method for rule, method in rules.items() if re.fullmatch(rule, path))
    return next(hits, None)


def _layer_shape(p: Mapping[str, jax.Array]) -> tuple[int, ...]:
    return (*p["a"].shape[:-1], p["b"].shape[-1])


def _stack(
    members: Sequence[tuple[LoRA, Mapping[str, jax.Array]]], rank: int
) -> dict[str, jax.Array]:
    """Stack modules on an axis behind that of stacked layers, padded to one rank."""

    def padded(value: jax.Array, axis: int) -> jax.Array:
        pads = [(0, 0)] * value.ndim
        pads[axis] = (0, rank - value.shape[axis])
        return jnp.pad(jnp.asarray(value, jnp.float32), pads)

    scale = jnp.array([lora.scale for lora, _ in members], jnp.float32)
    stack = members[0][1]["a"].shape[:-2]
    return {
        "a": jnp.stack([padded(p["a"], -1) for _, p in members], axis=-3),
        "b": jnp.stack([padded(p["b"], -2) for _, p in members], axis=-3),
        "scale": jnp.broadcast_to(scale, (*stack, len(members))),
    }
