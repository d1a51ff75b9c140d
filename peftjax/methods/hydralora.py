"""HydraLoRA: one A, several B, mixed per token by a softmax router.

Tian et al., "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning",
arXiv 2404.19245.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.method import Key, Layer, Method, Params, check_rank, dropout
from peftjax.methods.settings import (
    check_choice,
    check_count,
    check_dropout,
    check_flag,
    check_strength,
)


@dataclass(frozen=True)
class HydraLoRA(Method):
    """`y = x K + b + s Σ_i g_i (x A) B_i`, `g = softmax(x W_g)`, `s = alpha / r`.

    Parameters: `a [in, r]`, `b [N, r, out]`, `router [in, N]` (`[r, N]` for
    `router_input="lowrank"`); float32. A and router start uniform on ±1 over the root
    of their first axis, the heads at zero: the router must be random, lest the heads
    stay equal.

    The sum over heads is one matmul, `(g ⊗ x A) @ [B_1; …; B_N]`. Every head works on
    every token, there is no balance loss. The paper's Eq. 3 has no s; the released code
    has, and is followed. Its Eq. 4 gives the router the shape `[r, N]`; the code lets
    it read the layer's input, which is the default.

    The gates depend on the token, so the layer merges only with constant gates: where
    `gates [N]` are given they stand in for the router. With one head the gate is 1, the
    layer is LoRA, and its router (stored as in the released code) is not trained.

    Attributes:
        rank: r.
        heads: N; `choose_heads` suggests one.
        alpha: numerator of the scale.
        dropout: probability of dropping an entry of the input of A; the router's input
            is never dropped.

    Departures:
        dropout_per_head: draw a mask for each head, as the released code does, at the
            price of N products with A in training.
        router_input: `"input"` (released code) or `"lowrank"` (the paper's shape).

    >>> import jax.numpy as jnp
    >>> method = HydraLoRA(rank=1, alpha=2.0, heads=2)
    >>> p = {"a": jnp.ones((3, 1)), "b": jnp.array([[[1.0]], [[3.0]]]),
    ...      "router": jnp.zeros((3, 2))}
    >>> method(p, jnp.ones((1, 3)), jnp.zeros((3, 1)))
    Array([[12.]], dtype=float32)
    """

    float32: ClassVar[tuple[str, ...]] = ("router",)
    gated: ClassVar[bool] = True

    rank: int
    heads: int = 3
    alpha: float = field(kw_only=True)
    dropout: float = 0.0
    dropout_per_head: bool = False
    router_input: Literal["input", "lowrank"] = "input"

    def __post_init__(self) -> None:
        check_count(self, "rank", "heads")
        check_strength(self, "alpha")
        check_flag(self, "dropout_per_head")
        check_choice(self, "router_input", ("input", "lowrank"))
        check_dropout(self)

    @property
    def frozen(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("router",) if self.heads == 1 else ()

    def check(self, layer: Layer) -> None:
        check_rank("HydraLoRA", "rank", self.rank, layer)

    def count(self, layer: Layer, *, router: bool = True) -> int:
        """Return r (in + N out) and, unless the router is left out, its in N (or r N).

        The paper's percentages leave the router out.
        """
        read = layer.d_in if self.router_input == "input" else self.rank
        routed = router and self.heads > 1
        lora = self.rank * (layer.d_in + self.heads * layer.d_out)
        return lora + routed * read * self.heads

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        def kaiming(key: jax.Array, fan_in: int, fan_out: int) -> jax.Array:
            bound = 1 / sqrt(fan_in)
            shape = (fan_in, fan_out)
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        key_a, key_router = jax.random.split(key)
        read = layer.d_in if self.router_input == "input" else self.rank
        return {
            "a": kaiming(key_a, layer.d_in, self.rank),
            "b": jnp.zeros((self.heads, self.rank, layer.d_out)),
            "router": kaiming(key_router, read, self.heads),
        }

    def gates(self, p: Params, x: Any) -> jax.Array:
        """Return `g [..., N]`, float32, for activations `x [..., in]`.

        Their mean over given data is what `peft.merge(..., gates=...)` may take.
        """
        if self.router_input == "lowrank":
            x = x @ p["a"]
        return jax.nn.softmax((x @ p["router"]).astype(jnp.float32), axis=-1)

    def _low(self, p: Params, x: Any, key: Key):
        """Return x A, `[..., 1, r]`, or `[..., N, r]` under one mask for each head."""
        if key is None or not self.dropout_per_head:
            return (dropout(x, self.dropout, key) @ p["a"])[..., None, :]
        keys = jax.random.split(key, self.heads)
        low = [dropout(x, self.dropout, key) @ p["a"] for key in keys]
        return jnp.stack(low, axis=-2)

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
        low, b = self._low(p, x, key), p["b"]
        if gates is not None:
            low = gates.astype(low.dtype)[:, None] * low
        elif self.heads > 1:
            low = self.gates(p, x).astype(low.dtype)[..., None] * low
        flat = self.alpha / self.rank * low.reshape(*low.shape[:-2], -1)
        return x @ kernel + bias + flat @ b.reshape(-1, b.shape[-1])


class Heads(NamedTuple):
    """What `choose_heads` found.

    Attributes:
        heads: N at the elbow.
        curve: `[max_heads]` float64; entry N - 1 is the within-cluster sum of squares
            of N clusters.
    """

    heads: int
    curve: np.ndarray


def choose_heads(texts: Sequence[str], max_heads: int = 15, seed: int = 0) -> Heads:
    """Return the number of heads that the training texts suggest (appendix B).

    TF-IDF vectors, k-means from random centres for N = 1 … `max_heads`, elbow of the
    curve of within-cluster sums of squares. The paper leaves the details open, and they
    decide. Ours: TF-IDF of the 2000 most frequent 1- to 3-grams of characters within
    words, for single sentences share too few words to tell tasks apart; ten starts of
    k-means, for fewer leave the curve rough; as elbow the break of the two joined line
    segments that fit the curve best.

    The answer is never 1, and with less than some hundred texts of each task it may be
    off by more than one.

    Args:
        texts: training texts, one for each example.
        max_heads: the largest N tried.
        seed: of k-means.

    Raises:
        ImportError: scikit-learn is absent.
        ValueError: `max_heads` is below 4, or there are fewer texts than that.
    """
    if max_heads < 4 or len(texts) < max_heads:
        raise ValueError(
            f"choose_heads(max_heads={max_heads}) of {len(texts)} texts: expected "
            "max_heads >= 4 and at least as many texts"
        )
    try:
        from sklearn.cluster import KMeans
        from sklearn.feature_extraction.text import TfidfVectorizer
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError("choose_heads needs scikit-learn; install it") from error
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3), max_features=2000)
    vectors = words.fit_transform(texts)

    def scatter(n: int) -> Any:
        # from random centres "auto" is ten starts
        means = KMeans(n, init="random", n_init="auto", random_state=seed)
        return means.fit(vectors).inertia_

    with threadpool_limits(1):  # one order of summation, so one answer
        curve = [scatter(n) for n in range(1, max_heads + 1)]
    return Heads(_elbow(np.array(curve)), np.array(curve))


def _elbow(curve: np.ndarray) -> int:
    """Return where two joined line segments that fit the curve best meet."""
    n = np.arange(1.0, len(curve) + 1)

    def error(elbow: int) -> float:
        basis = np.stack([np.ones_like(n), n, np.maximum(n - elbow, 0)], axis=1)
        solution = np.linalg.lstsq(basis, curve, rcond=None)[0]
        return float(np.sum((basis @ solution - curve) ** 2))

    return min(range(2, len(curve)), key=error)
