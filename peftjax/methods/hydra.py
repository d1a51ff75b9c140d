"""Hydra: low-rank branches beside and behind the frozen weight.

Kim et al., "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient
Fine-tuning", arXiv 2309.06922.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, Literal

import jax
import jax.numpy as jnp

from peftjax.core.method import (
    Key,
    Layer,
    LowRank,
    Method,
    Params,
    Rows,
    check_rank,
    dropout,
)
from peftjax.methods.settings import (
    check_choice,
    check_count,
    check_dropout,
    check_flag,
    check_strength,
)


@dataclass(frozen=True)
class Hydra(Method):
    """`y = z + s (x A_p) B_p + s (z A_s) B_s`, with `z = x K + b`.

    Parameters: `par_a [in, r]`, `par_b [r, out]`, `seq_a [out, r]`, `seq_b [r, out]`;
    with `branch_bias` also `par_a_bias [r]`, `par_b_bias [out]`, `seq_a_bias [r]`,
    `seq_b_bias [out]`, added after the product of the same name; with `learn_scale`
    also `scale []`. Float32; every up-projection and bias starts at zero.

    The parallel branch is LoRA; the sequential one reads the layer's output, frozen
    bias included, hence `K' = K + s (A_p B_p + K A_s B_s)` and a merged bias that
    contains `s b A_s B_s`. Dropout acts in rank space, between the two projections.
    Of many rows `z A_s` is computed as `x (K A_s) + b A_s`, so that z is not kept.

    Attributes:
        rank: r of the parallel branch.
        seq_rank: r of the sequential branch; None means `rank`.
        scale: s, or its start with `learn_scale`.
        branches: `"both"`, `"parallel"` or `"sequential"`.
        branch_bias: biases on both projections (the released ViT and CLIP code).
        dropout: probability of dropping an entry between the projections.
        start: of the down-projections: `"xavier"` uniform (released ViT code),
            `"normal"` with std 0.02 (CLIP) or `"kaiming"`, uniform on
            `±1/sqrt(fan_in)` (RoBERTa).
        learn_scale: train s.

    >>> import jax.numpy as jnp
    >>> method = Hydra(rank=1, branches="sequential", scale=0.5)
    >>> p = {"seq_a": jnp.ones((2, 1)), "seq_b": jnp.array([[1.0, 0.0]])}
    >>> method(p, jnp.ones((1, 2)), jnp.eye(2), jnp.array([0.0, 2.0]))
    Array([[3., 3.]], dtype=float32)
    """

    rank: int
    seq_rank: int | None = None
    scale: float = 1.0
    branches: Literal["both", "parallel", "sequential"] = "both"
    branch_bias: bool = False
    dropout: float = 0.0
    start: Literal["xavier", "normal", "kaiming"] = "xavier"
    learn_scale: bool = False

    def __post_init__(self) -> None:
        check_count(self, "rank", *(["seq_rank"] if self.seq_rank is not None else []))
        check_strength(self, "scale")
        check_flag(self, "branch_bias", "learn_scale")
        check_choice(self, "branches", ("both", "parallel", "sequential"))
        check_choice(self, "start", ("xavier", "normal", "kaiming"))
        check_dropout(self)

    @property
    def uses_bias(self) -> bool:
        return self.branches != "parallel"

    def check(self, layer: Layer) -> None:
        for name, rank, width in self._branches(layer):
            setting = "seq_rank" if name == "seq" and self.seq_rank else "rank"
            check_rank("Hydra", setting, rank, replace(layer, d_in=width))

    def count(self, layer: Layer) -> int:
        total = int(self.learn_scale)
        for _, rank, width in self._branches(layer):
            total += rank * (width + layer.d_out)
            total += (rank + layer.d_out) * self.branch_bias
        return total

    def _branches(self, layer: Layer) -> Iterator[tuple[str, int, int]]:
        """Yield the name, rank and input width of each branch."""
        if self.branches != "sequential":
            yield "par", self.rank, layer.d_in
        if self.branches != "parallel":
            yield "seq", self.seq_rank or self.rank, layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        p: dict[str, jax.Array] = {}
        for branch_key, (name, rank, width) in zip(
            jax.random.split(key), self._branches(layer)
        ):
            p[f"{name}_a"] = self._down(branch_key, (width, rank))
            p[f"{name}_b"] = jnp.zeros((rank, layer.d_out))
            if self.branch_bias:
                p[f"{name}_a_bias"] = jnp.zeros(rank)
                p[f"{name}_b_bias"] = jnp.zeros(layer.d_out)
        if self.learn_scale:
            p["scale"] = jnp.asarray(self.scale, jnp.float32)
        return p

    def _down(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        if self.start == "normal":
            return 0.02 * jax.random.normal(key, shape)
        fan_in, rank = shape
        xavier = self.start == "xavier"
        bound = sqrt(6 / (fan_in + rank)) if xavier else 1 / sqrt(fan_in)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    def _low(self, p: Params, name: str, low: Any, key: Key) -> Any:
        if self.branch_bias:
            low = low + p[f"{name}_a_bias"]
        return dropout(low, self.dropout, key)

    def low_rank(self, p: Params, kernel: jax.Array, bias: Any) -> LowRank | None:
        if self.dropout:
            return None
        a, b, constant = [], [], bias
        scale = p["scale"] if self.learn_scale else self.scale
        for name in ("par", "seq"):
            if f"{name}_a" not in p:
                continue
            down, up = p[f"{name}_a"], scale * p[f"{name}_b"]
            shift: Any = 0.0
            if name == "seq":
                shift = 0.0 if isinstance(bias, float) else bias @ down
                down = kernel @ down
            if self.branch_bias:
                shift = shift + p[f"{name}_a_bias"]
                constant = constant + scale * p[f"{name}_b_bias"]
            if not isinstance(shift, float):
                constant = constant + shift @ up
            a.append(down)
            b.append(up)
        return LowRank(jnp.concatenate(a, axis=1), jnp.concatenate(b), constant)

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        par_key, seq_key = (None, None) if key is None else jax.random.split(key)
        z, low = x @ kernel + bias, {}
        if self.branches != "sequential":
            low["par"] = self._low(p, "par", x @ p["par_a"], par_key)
        if self.branches != "parallel":
            read = _sequential(x, z, kernel, bias, p["seq_a"])
            low["seq"] = self._low(p, "seq", read, seq_key)
        # one product for both branches, so that one delta is formed
        scale = p["scale"] if self.learn_scale else self.scale
        up = jnp.concatenate([p[f"{name}_b"] for name in low])
        y = z + (scale * jnp.concatenate([*low.values()], axis=-1)) @ up
        if self.branch_bias:
            y = y + scale * sum(p[f"{name}_b_bias"] for name in low)
        return y


def _sequential(x: Any, z: Any, kernel: Any, bias: Any, a: jax.Array) -> Any:
    """Return `z A`, of many rows as `x (K A) + b A`, which need not keep or read z.

    K A costs as much as r rows of z: at 32 r of them, a part in thirty.
    """
    if isinstance(x, Rows) or x.size < 32 * a.shape[1] * x.shape[-1]:
        return z @ a
    low = x @ (kernel @ a)
    # The bias 0.0 of a layer without one has no product.
    return low if isinstance(bias, float) else low + bias @ a
