"""FourierFT: a delta with a few trained frequencies.

Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", arXiv
2405.03003.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.method import AtInit, Key, Layer, Method, Params
from peftjax.methods.settings import check_choice, check_count, check_strength


@dataclass(frozen=True)
class FourierFT(Method):
    """`y = x (K + scale · Re IDFT₂(F)) + b` (Eqs. 2 to 4 of the paper).

    F is zero but for n entries, at places that the seed alone decides for each shape of
    layer, as the torch library draws them: so no file holds them.

    Parameter: `spectrum [n]`, standard normal, or zeros with `start="zeros"`; float32.

    The delta has full rank and is formed, with its gradient: 1.5 of the bound's FLOPs.

    Attributes:
        frequencies: n.
        scale: the strength.
        seed: of the places.
        start: `"normal"`, with which a fresh adapter is not the frozen layer, as in the
            paper, or `"zeros"`.

    >>> p, method = {"spectrum": jnp.array([6.0])}, FourierFT(frequencies=1, scale=2.0)
    >>> float(method(p, jnp.array([[1.0, 0.0]]), jnp.zeros((2, 3)))[0, 0])
    2.0
    """

    float32: ClassVar[tuple[str, ...]] = ("spectrum",)

    frequencies: int
    scale: float = 150.0
    seed: int = 777
    start: Literal["normal", "zeros"] = "normal"

    def __post_init__(self) -> None:
        check_count(self, "frequencies", *["seed"] * (self.seed != 0))
        check_strength(self, "scale")
        check_choice(self, "start", ("normal", "zeros"))

    @property
    def at_init(self) -> AtInit:
        return "exact" if self.start == "zeros" else "none"

    @property
    def forms_kernel(self) -> bool:
        return True

    def check(self, layer: Layer) -> None:
        if self.frequencies > layer.d_in * layer.d_out:
            raise ValueError(
                f"{layer.path or 'layer'}: FourierFT(frequencies={self.frequencies}): "
                f"expected at most the {layer.d_in * layer.d_out} entries of the weight"
            )

    def count(self, layer: Layer) -> int:
        return self.frequencies

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        normal = jax.random.normal(key, (self.frequencies,))
        return {"spectrum": normal if self.start == "normal" else 0 * normal}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        d_in, d_out = kernel.shape
        columns, rows = np.divmod(
            places(d_in * d_out, self.frequencies, self.seed), d_in
        )
        f = jnp.zeros((d_in, d_out)).at[rows, columns].set(p["spectrum"])
        delta = self.scale * jnp.fft.ifft2(f).real
        return x @ (kernel + delta.astype(kernel.dtype)) + bias


@lru_cache(maxsize=32)
def places(size: int, count: int, seed: int) -> np.ndarray:
    """Return the first numbers of torch's random permutation of `range(size)`, int64.

    Fisher and Yates' shuffle with the 32-bit numbers of a Mersenne twister.

    >>> places(10, 4, seed=0).tolist()
    [4, 1, 7, 5]
    """
    twister = np.random.RandomState(seed)
    draws = twister.randint(0, 2**32, size=count, dtype=np.uint32).astype(np.int64)
    order = np.arange(size)
    for i, draw in enumerate(draws[: size - 1]):
        j = i + draw % (size - i)
        order[i], order[j] = order[j], order[i]
    return order[:count].copy()
