"""TrainableTokens: a few rows of an embedding, trained.

What learns tokens that were added to a vocabulary, or a few of the old ones anew; named
after the torch library's method, which cites no paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Kind, Layer, Method, Params


@dataclass(frozen=True)
class TrainableTokens(Method):
    """`y = x K + (x S) (R - Sᵀ K)`: the rows S of the table K are R.

    x is one-hot, the row of S of a token of `tokens` has its place, and others are
    zero. An output layer that is the same table, transposed, has the rows too.

    Parameters: `rows [n, out]`, R, which start as the table's; float32.

    Attributes:
        tokens: the n rows that are trained.

    >>> p = {"rows": jnp.array([[5.0, 7.0]])}
    >>> x = jax.nn.one_hot(jnp.array([0, 2]), 3)
    >>> TrainableTokens(tokens=(2,))(p, x, jnp.ones((3, 2)))
    Array([[1., 1.],
           [5., 7.]], dtype=float32)
    """

    needs_kernel: ClassVar[bool] = True
    kinds: ClassVar[tuple[Kind, ...]] = ("embedding",)

    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        whole = all(type(token) is int and token >= 0 for token in self.tokens)
        if not self.tokens or not whole or len({*self.tokens}) < len(self.tokens):
            raise ValueError(
                f"TrainableTokens(tokens={self.tokens!r}): expected different whole "
                "numbers from 0"
            )

    def check(self, layer: Layer) -> None:
        if max(self.tokens) >= layer.d_in:
            raise ValueError(
                f"{layer.path or 'layer'}: TrainableTokens has token "
                f"{max(self.tokens)}, and the table {layer.d_in} rows; expected at "
                f"most {layer.d_in - 1}"
            )

    def count(self, layer: Layer) -> int:
        return len(self.tokens) * layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        return {"rows": layer.weight[jnp.array(self.tokens)].astype(jnp.float32)}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        tokens = jnp.array(self.tokens)
        places = jax.nn.one_hot(tokens, kernel.shape[0], axis=0, dtype=kernel.dtype)
        return x @ kernel + (x @ places) @ (p["rows"] - kernel[tokens]) + bias
