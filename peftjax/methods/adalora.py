"""AdaLoRA: a low-rank delta in SVD form, whose rank moves to the layers that need it.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv
2303.10512. `peftjax.search.allocate` moves the ranks while training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params, check_rank, dropout
from peftjax.methods.settings import (
    check_choice,
    check_count,
    check_dropout,
    check_share,
    check_size,
    check_strength,
)


@dataclass(frozen=True)
class AdaLoRA(Method):
    """`y = x K + b + s ((x A) ∘ e) B`, the paper's `Δ = P Λ Q` with P = Bᵀ, Q = Aᵀ.

    Parameters: `a [in, r]`, `b [r, out]`, `e [r]`, the diagonal of Λ; float32. A fresh
    e is zero, A and B are normal with deviation 0.02. The loss gains
    `γ (‖AᵀA - I‖ + ‖B Bᵀ - I‖)`, which keeps the triplets apart.

    Frozen, moved by `peftjax.search.allocate`: `mask [r]`, 1 for the triplets that have
    their place in the budget; `pruned [r]`, what was taken off e, so that e - pruned is
    Λ, and is zero where a triplet was just masked; and of each parameter the smoothed
    sensitivity |w g| and its uncertainty (Eq. 9 and 10), `a_mean`, `a_spread`, ...

    Attributes:
        rank: r, the rank that each layer starts with.
        alpha: numerator of the scale, `s = alpha / (r + 1e-5)`; r stays what it was.
        target_rank: mean rank of the layers in the end.
        total_steps: updates of the whole training; None in the configuration of a run,
            which then takes its own length.
        warmup: updates before the budget falls, a number of them or a share below 1.
        final: updates after the budget is reached, likewise.
        every: updates from one allocation to the next.
        penalty_weight: γ of one layer.
        beta1: of the smoothed sensitivity.
        beta2: of its uncertainty.
        dropout: probability of dropping an input entry.

    Departures:
        penalty_norm: `"frobenius"` (released code), or `"squared"` (the paper's text).
            The released code takes the mean over the 2n factors of n layers, the paper
            the sum: the code's γ is 2n times this one.

    A weight decay of the optimizer acts on e, and so draws Λ = e - pruned towards
    -pruned, where the code, which sets entries of Λ to zero in place, draws it to zero.
    The two are equal without decay; leave e out of it (`optax.masked`) for the same.

    >>> method = AdaLoRA(rank=2, alpha=6.0, target_rank=1)
    >>> p = {**method.init(jax.random.key(0), Layer(3, 4)), "a": jnp.ones((3, 2))}
    >>> p |= {"b": jnp.ones((2, 4)), "e": jnp.array([1.0, 5.0])}
    >>> p |= {"pruned": jnp.array([0.0, 5.0])}
    >>> method(p, jnp.ones((1, 3)), jnp.zeros((3, 4))).round(3)
    Array([[9., 9., 9., 9.]], dtype=float32)
    """

    float32: ClassVar[tuple[str, ...]] = ("e", "pruned")
    frozen: ClassVar[tuple[str, ...]] = (
        "mask",
        "pruned",
        *(f"{name}_{kind}" for name in "abe" for kind in ("mean", "spread")),
    )
    moved_by: ClassVar[str] = "peftjax.search.allocate"

    rank: int
    alpha: float
    target_rank: int
    total_steps: int | None = None
    warmup: float = 0
    final: float = 0
    every: int = 1
    penalty_weight: float = 0.1
    beta1: float = 0.85
    beta2: float = 0.85
    dropout: float = 0.0
    penalty_norm: Literal["frobenius", "squared"] = "frobenius"

    def __post_init__(self) -> None:
        check_count(self, "rank", "target_rank", "every")
        check_strength(self, "alpha")
        check_size(self, "penalty_weight", "warmup", "final")
        check_share(self, "beta1", "beta2")
        check_dropout(self)
        check_choice(self, "penalty_norm", ("frobenius", "squared"))
        if self.target_rank > self.rank:
            raise ValueError(
                f"AdaLoRA(target_rank={self.target_rank}): expected at most "
                f"rank={self.rank}, with which every layer starts"
            )
        if self.total_steps is not None:
            check_count(self, "total_steps")
            self.phases()

    def phases(self) -> tuple[int, int]:
        """Return the update after which the budget falls and that where it has fallen.

        Raises:
            ValueError: `total_steps` is None, or leaves no update between the two.
        """
        if self.total_steps is None:
            raise ValueError(
                "AdaLoRA(total_steps=None): expected the number of updates of the "
                "training, over which the budget falls"
            )
        first, last = (
            int(number * self.total_steps) if number < 1 else int(number)
            for number in (self.warmup, self.final)
        )
        if first >= self.total_steps - last:
            raise ValueError(
                f"AdaLoRA(total_steps={self.total_steps}): expected more than "
                f"warmup + final, {first} + {last}, so that the budget can fall between"
            )
        return first, self.total_steps - last

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank + 1e-5)  # as released

    def check(self, layer: Layer) -> None:
        check_rank("AdaLoRA", "rank", self.rank, layer)

    def count(self, layer: Layer) -> int:
        return self.rank * (layer.d_in + layer.d_out + 1)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        keys, r = jax.random.split(key), self.rank
        p = {
            "a": 0.02 * jax.random.normal(keys[0], (layer.d_in, r)),
            "b": 0.02 * jax.random.normal(keys[1], (r, layer.d_out)),
            "e": jnp.zeros(r),
        }
        moved = {
            f"{k}_{kind}": jnp.zeros_like(v) for k, v in p.items() for kind in _KINDS
        }
        return {**p, **moved, "mask": jnp.ones(r), "pruned": jnp.zeros(r)}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        diagonal = (self.scale * (p["e"] - p["pruned"])).astype(p["a"].dtype)
        low = dropout(x, self.dropout, key) @ p["a"]
        return x @ kernel + bias + (low * diagonal) @ p["b"]

    def penalty(self, p: Params) -> jax.Array | float:
        if self.penalty_weight == 0:
            return 0.0
        a, b = p["a"], p["b"]
        return self.penalty_weight * (self._apart(a.T @ a) + self._apart(b @ b.T))

    def _apart(self, gram: jax.Array) -> jax.Array:
        squared = jnp.sum((gram - jnp.eye(self.rank)) ** 2)
        # The root has no gradient at 0, which orthonormal triplets reach.
        tiny = jnp.finfo(jnp.float32).eps ** 2
        return squared if self.penalty_norm == "squared" else jnp.sqrt(squared + tiny)


_KINDS = ("mean", "spread")
