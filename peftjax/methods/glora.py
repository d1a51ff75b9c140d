"""GLoRA: five support tensors on the weight and the bias of a layer.

Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning",
arXiv 2306.07967. The supernet of its search is in `glora_supernet.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, LowRank, Method, Params, check_rank
from peftjax.methods.settings import check_choice, count

Form = Literal["lora", "vector", "constant", "none"]
_FORMS = {
    "a": ("lora", "vector", "constant", "none"),
    "b": ("lora", "vector", "constant", "none"),
    "c": ("lora", "vector", "none"),
    "d": ("vector", "constant", "none"),
    "e": ("vector", "constant", "none"),
}


class Supports(NamedTuple):
    """The support tensors of one layer as its formula needs them; None for none.

    Attributes:
        a, b: factors `([in, k], [k, out])`, or one number per output `[out]` or for all
            entries `[]`.
        c: `[in]`.
        d, e: `[out]` or `[]`.
    """

    a: Any
    b: Any
    c: Any
    d: Any
    e: Any


def generalized(s: Supports, x: Any, kernel: jax.Array, bias: Any) -> Any:
    """Return `x (K ∘ (1 + A) + B) + c K + b ∘ (1 + D) + E`.

    Only factors of A need a matrix of the kernel's size, which B then joins: a number
    per output scales the output, and B acts on x.
    """
    if isinstance(s.a, tuple):
        added = s.b[0] @ s.b[1] if isinstance(s.b, tuple) else s.b
        whole = kernel * (1 + s.a[0] @ s.a[1])
        y = x @ (whole if added is None else whole + added)
    else:
        y = x @ kernel if s.a is None else (x @ kernel) * (1 + s.a)
        if isinstance(s.b, tuple):
            y = y + (x @ s.b[0]) @ s.b[1]
        elif s.b is not None:
            y = y + (x @ jnp.ones((kernel.shape[0], 1), kernel.dtype)) * s.b
    if s.c is not None:
        y = y + s.c @ kernel
    bias = _bias(s, bias)
    return y + bias if s.e is None else y + bias + s.e


def _bias(s: Supports, bias: Any) -> Any:
    """Return `b ∘ (1 + D)`; 0.0, without a bias, must not become an array of zeros."""
    return bias if s.d is None or isinstance(bias, float) else bias * (1 + s.d)


def _constant(s: Supports, kernel: jax.Array, bias: Any) -> Any:
    """Return `c K + b ∘ (1 + D) + E`."""
    parts = _bias(s, bias), None if s.c is None else s.c @ kernel, s.e
    return sum(part for part in parts if part is not None)


@dataclass(frozen=True)
class GLoRA(Method):
    """`y = x (K ∘ (1 + A) + B) + c K + b ∘ (1 + D) + E` (the released code).

    Parameters by form. A and B: `"lora"` has `a_in [in, r]`, `a_out [r, out]`,
    `"vector"` `a [out]` (one number per output, on every input), `"constant"` `a []`;
    likewise b. C: `"lora"` has `c_in [in, r]`, `c_out [r]`, `"vector"` `c [in]`. D and
    E: `"vector"` `[out]`, `"constant"` `[]`. Float32; `a_out`, `b_out`, `c_in` and
    every vector and constant start at zero, the other factors Xavier uniform.

    C shifts the input of the original kernel; the language-model fork of the authors
    merges it with the adapted one by mistake. Where the layer has no bias D is unused,
    and C and E create one.

    `semantics="matrix"` is the other reading of the paper's `W_0 A`, a matrix product
    in input space: `a_out` is then `[r, in]` and `y = (x + (x A_in) A_out) K + …`.

    Attributes:
        rank: r, or three ranks, of A, B and C.
        a: the form of A, and so on.
        b: of B.
        c: of C.
        d: of D.
        e: of E.

    Departures:
        semantics: `"elementwise"` (released code) or `"matrix"`.

    >>> import jax.numpy as jnp
    >>> method = GLoRA(rank=1, a="constant", b="none", c="none", d="none", e="vector")
    >>> p = {"a": jnp.asarray(1.0), "e": jnp.array([5.0])}
    >>> method(p, jnp.ones((1, 2)), jnp.ones((2, 1)), jnp.ones(1))
    Array([[10.]], dtype=float32)
    """

    rank: int | tuple[int, int, int]
    a: Form = "lora"
    b: Form = "lora"
    c: Form = "lora"
    d: Form = "vector"
    e: Form = "vector"
    semantics: Literal["elementwise", "matrix"] = "elementwise"

    def __post_init__(self) -> None:
        for name, allowed in _FORMS.items():
            check_choice(self, name, allowed)
        check_choice(self, "semantics", ("elementwise", "matrix"))
        three: Any = self.rank if isinstance(self.rank, tuple | list) else ()
        ranks = tuple(map(count, three or (self.rank,)))
        if len(ranks) != (3 if three else 1) or not all(ranks):
            raise ValueError(
                f"GLoRA(rank={self.rank!r}): expected one integer >= 1, or three"
            )
        object.__setattr__(self, "rank", ranks if three else ranks[0])
        if self.semantics == "matrix" and self.a == "vector":
            raise ValueError(
                "GLoRA(a='vector', semantics='matrix'): expected 'lora', 'constant' or "
                "'none'; a number per output is the element-wise reading"
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        return (self.rank,) * 3 if isinstance(self.rank, int) else tuple(self.rank)

    @property
    def uses_bias(self) -> bool:
        return self.d != "none"

    @property
    def forms_kernel(self) -> bool:
        return self.a == "lora" and self.semantics == "elementwise"

    def check(self, layer: Layer) -> None:
        for name, rank in zip("abc", self.ranks):
            if getattr(self, name) == "lora":
                widest = layer.d_in if name == "c" else layer.d_out
                check_rank("GLoRA", "rank", rank, replace(layer, d_out=widest))

    def _shapes(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, rank in zip("abcde", (*self.ranks, 0, 0)):
            form = getattr(self, name)
            if form == "constant":
                shapes[name] = ()
            elif form == "vector":
                shapes[name] = (layer.d_in if name == "c" else layer.d_out,)
            elif form == "lora":
                square = name == "a" and self.semantics == "matrix"
                out = (layer.d_in if square else layer.d_out,)
                shapes[f"{name}_in"] = (layer.d_in, rank)
                shapes[f"{name}_out"] = (rank, *(() if name == "c" else out))
        return shapes

    def count(self, layer: Layer) -> int:
        return sum(prod(shape) for shape in self._shapes(layer).values())

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        shapes = self._shapes(layer)
        return {
            name: xavier(part, shape)
            if name in ("a_in", "b_in", "c_out")
            else jnp.zeros(shape)
            for part, (name, shape) in zip(
                jax.random.split(key, len(shapes) or 1), shapes.items()
            )
        }

    def effective(self, p: Params) -> Supports:
        """Return the support tensors that the parameters stand for."""

        def support(name: str) -> Any:
            form = getattr(self, name)
            if form == "none":
                return None
            if form != "lora":
                return p[name]
            factors = p[f"{name}_in"], p[f"{name}_out"]
            return factors[0] @ factors[1] if name == "c" else factors

        return Supports(*map(support, "abcde"))

    def low_rank(self, p: Params, kernel: jax.Array, bias: Any) -> LowRank | None:
        s = self.effective(p)
        if s.a is not None or not isinstance(s.b, tuple):
            return None
        a, b = s.b
        return LowRank(a, b, _constant(s, kernel, bias))

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        s = self.effective(p)
        if self.semantics == "elementwise" or self.a != "lora":
            return generalized(s, x, kernel, bias)
        left, right = s.a
        y = generalized(s._replace(a=None), x, kernel, bias)
        return y + (x @ left) @ (right @ kernel)


def xavier(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw a factor `[in, r]`, or `[r]` as one of fan-in r and fan-out 1."""
    bound = sqrt(6 / (sum(shape) + (len(shape) == 1)))
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
