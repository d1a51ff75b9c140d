"""GLoRA's supernet: one parameter set that holds all 432 forms of a layer.

Chavan et al., arXiv 2306.07967; weight entanglement as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from peftjax.core.method import Key, Layer, Method, Params
from peftjax.methods.glora import GLoRA, Supports, generalized
from peftjax.methods.settings import check_count

FORMS = ("none", "constant", "vector", "lora")  # the codes 0 … 3
CHOICES = ((0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 3), (0, 1, 2), (0, 1, 2))  # of A … E


@dataclass(frozen=True)
class GLoRASupernet(Method):
    """The formula of `GLoRA` with the form of each support as data.

    Parameters: `a_in [in, r]`, `a_out [r, out]`, likewise b; `c_in [in, r]`,
    `c_out [r]`; `d [out]`, `e [out]`; float32. Frozen: `structure` int32 `[5]`, the
    forms of A … E (0 none, 1 constant, 2 vector, 3 LoRA), and `ranks` int32 `[3]`,
    those of A, B and C. A new structure is a new array, so it compiles nothing.

    The cheaper forms share entries with the LoRA factors: vector is `a_out[0]`
    (`c_in[:, 0]`), constant `a_out[0, 0]` (`d[0]`), rank q the first q columns and
    rows. What a structure leaves out gets no gradient. A fresh supernet has the largest
    structure and is the frozen layer in every one. `peftjax.search` draws structures.

    Attributes:
        rank: r, the largest rank.

    >>> import jax, jax.numpy as jnp
    >>> method = GLoRASupernet(rank=2)
    >>> p = method.init(jax.random.key(0), Layer(3, 4))
    >>> p = {**p, "structure": jnp.array([3, 0, 2, 1, 0])}
    >>> bool((method(p, jnp.ones((1, 3)), jnp.ones((3, 4))) == 3).all())
    True
    """

    frozen: ClassVar[tuple[str, ...]] = ("structure", "ranks")
    moved_by: ClassVar[str] = "peftjax.search.draw"

    rank: int

    def __post_init__(self) -> None:
        check_count(self, "rank")

    @property
    def uses_bias(self) -> bool:
        return True

    @property
    def forms_kernel(self) -> bool:
        return True

    @property
    def _largest(self) -> GLoRA:
        return GLoRA(rank=self.rank)

    def check(self, layer: Layer) -> None:
        self._largest.check(layer)

    def count(self, layer: Layer) -> int:
        return self._largest.count(layer)

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        return {
            **self._largest.init(key, layer),
            "structure": jnp.array([3, 3, 3, 2, 2], jnp.int32),
            "ranks": jnp.full(3, self.rank, jnp.int32),
        }

    def effective(self, p: Params) -> Supports:
        """Return the support tensors that the structure selects.

        A and B are factors of rank r + 1: the last pair, a column of ones and a row,
        carries the vector or the constant.
        """
        code = p["structure"]

        def masked(name: str, i: int) -> jax.Array:
            keep = (code[i] == 3) & (jnp.arange(self.rank) < p["ranks"][i])
            return p[f"{name}_in"] * keep

        def shared(vector: jax.Array, i: int) -> jax.Array:
            return vector * (code[i] == 2) + vector[0] * (code[i] == 1)

        def factors(name: str, i: int) -> tuple[jax.Array, jax.Array]:
            left, right = masked(name, i), p[f"{name}_out"]
            ones = jnp.ones_like(left[:, :1])
            row = shared(right[0], i)[None]
            return jnp.concatenate([left, ones], 1), jnp.concatenate([right, row], 0)

        c = masked("c", 2) @ p["c_out"] + p["c_in"][:, 0] * (code[2] == 2)
        d, e = shared(p["d"], 3), shared(p["e"], 4)
        return Supports(factors("a", 0), factors("b", 1), c, d, e)

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        return generalized(self.effective(p), x, kernel, bias)

    def subnet(self, structure: Sequence[int], ranks: Sequence[int] = ()) -> GLoRA:
        """Return the fixed method of a structure; its `count` is the official one.

        Args:
            structure: five codes.
            ranks: of A, B and C; by default the supernet's.

        Raises:
            ValueError: a code or a rank that the search space does not hold.
        """
        codes = [int(code) for code in structure]
        if len(codes) != 5 or any(c not in ok for c, ok in zip(codes, CHOICES)):
            raise ValueError(
                f"structure {codes}: expected five codes out of {CHOICES} for A … E"
            )
        given = tuple(int(q) for q in ranks) or (self.rank,) * 3
        if len(given) != 3 or not all(1 <= q <= self.rank for q in given):
            raise ValueError(f"ranks {given}: expected three of 1 … {self.rank}")
        rank = given[0] if len(set(given)) == 1 else given
        forms: list[Any] = [FORMS[code] for code in codes]
        return GLoRA(rank, *forms)

    def to_glora(self, p: Params) -> tuple[GLoRA, dict[str, jax.Array]]:
        """Return the fixed method of one layer's structure and its own parameters.

        Raises:
            ValueError: `structure` is stacked; layers of a scan have one static method,
                so unstack them first.
        """
        if p["structure"].ndim != 1:
            raise ValueError(
                f"structure has shape {p['structure'].shape}: expected [5]. Stacked "
                "layers cannot have different fixed methods; unstack the model first"
            )
        method = self.subnet(p["structure"].tolist(), p["ranks"].tolist())
        fixed: dict[str, Any] = {}
        for name, rank in zip("abc", method.ranks):
            left, right = p[f"{name}_in"], p[f"{name}_out"]
            form = getattr(method, name)
            if form == "lora":
                fixed[f"{name}_in"], fixed[f"{name}_out"] = left[:, :rank], right[:rank]
            elif form == "vector":
                fixed[name] = left[:, 0] if name == "c" else right[0]
            elif form == "constant":
                fixed[name] = right[0, 0]
        for name in "de":
            if (form := getattr(method, name)) != "none":
                fixed[name] = p[name] if form == "vector" else p[name][0]
        return method, fixed
