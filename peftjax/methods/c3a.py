"""C3A: a delta of circulant blocks, applied as circular convolutions.

Chen et al., "Parameter-Efficient Fine-Tuning via Circular Convolution", arXiv
2407.19342.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from peftjax.core.method import AtInit, Key, Kind, Layer, Method, Params
from peftjax.methods.settings import check_choice, check_count


@dataclass(frozen=True)
class C3A(Method):
    """`y = x K + b + (1 / in) Σ_i x_i ⋆ w_{o,i}`, ⋆ a circular correlation of length b.

    x and y are cut into stretches of b entries; by Fourier transforms a block costs
    `b log b` and no matrix is formed (Eq. 9 of the paper).

    Parameter: `w [out/b, in/b, b]`, uniform with variance `2 / (in + out)` (Xavier), so
    that a fresh adapter is not the frozen layer, or zeros; float32.

    Attributes:
        block: b; divides the layer's input and output.
        start: `"xavier"` or `"zeros"`.

    >>> p = {"w": jnp.array([[[2.0, 4.0]]])}
    >>> C3A(block=2)(p, jnp.array([[1.0, 10.0]]), jnp.zeros((2, 2)))
    Array([[21., 12.]], dtype=float32)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)
    float32: ClassVar[tuple[str, ...]] = ("w",)

    block: int
    start: Literal["xavier", "zeros"] = "xavier"

    def __post_init__(self) -> None:
        check_count(self, "block")
        check_choice(self, "start", ("xavier", "zeros"))

    @property
    def at_init(self) -> AtInit:
        return "exact" if self.start == "zeros" else "none"

    def check(self, layer: Layer) -> None:
        if layer.d_in % self.block or layer.d_out % self.block:
            raise ValueError(
                f"{layer.path or 'layer'}: C3A(block={self.block}) does not divide a "
                f"[{layer.d_in}, {layer.d_out}] weight; expected a divisor of both"
            )

    def count(self, layer: Layer) -> int:
        return layer.d_in * layer.d_out // self.block

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        shape = layer.d_out // self.block, layer.d_in // self.block, self.block
        if self.start == "zeros":
            return {"w": jnp.zeros(shape)}
        bound = sqrt(6 / (layer.d_in + layer.d_out))
        return {"w": jax.random.uniform(key, shape, minval=-bound, maxval=bound)}

    def formula(self, p: Params, x: Any, kernel: Any, bias: Any, *, key: Key = None):
        d_in, d_out = kernel.shape
        z = x.reshape(*x.shape[:-1], -1, self.block).astype(p["w"].dtype)
        spectra = jnp.conj(jnp.fft.rfft(p["w"] / d_in))
        z = jnp.einsum("...ib,oib->...ob", jnp.fft.rfft(z), spectra)
        delta = jnp.fft.irfft(z, self.block).reshape(*x.shape[:-1], d_out)
        return x @ kernel + bias + delta.astype(x.dtype)
