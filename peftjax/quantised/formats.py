"""Weights in 4 and 8 bits: how an array is divided, scaled and coded.

An array is coded in groups of neighbours along one axis. A group has one scale, its
largest magnitude; a number is the nearest level times the scale. With `double`, the
scales are coded in their turn, in 8 bits (QLoRA, arXiv 2305.14314, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.quantised import codebooks

SCALES = 256  # scales that share one scale of their own


@dataclass(frozen=True)
class Format:
    """How an array is coded.

    Attributes:
        group: how many neighbours share a scale; they have to divide the axis.
        axis: the axis along which they lie, counted from the end: -2, the inputs of a
            kernel `[in, out]`, is what the torch library divides.
        double: the scales are coded too.
    """

    group: int = 64
    axis: int = -2
    double: bool = False
    levels: ClassVar[np.ndarray]
    packed: ClassVar[bool] = True  # two codes in a byte

    def __post_init__(self) -> None:
        for name, least in (("group", 1), ("axis", None)):
            value = getattr(self, name)
            if type(value) is not int or (least is not None and value < least):
                raise ValueError(
                    f"{type(self).__name__}: expected {name} as a whole number"
                    f"{'' if least is None else f' of at least {least}'}, found "
                    f"{value!r}"
                )
        if self.axis >= 0:
            raise ValueError(
                f"{type(self).__name__}: expected axis counted from the end, such as "
                f"-2, found {self.axis}"
            )


@dataclass(frozen=True)
class Int8(Format):
    """Whole numbers from -127 to 127 times a scale."""

    levels: ClassVar[np.ndarray] = codebooks.INT8
    packed: ClassVar[bool] = False


@dataclass(frozen=True)
class Int4(Format):
    """Whole numbers from -7 to 7 times a scale."""

    levels: ClassVar[np.ndarray] = codebooks.INT4


@dataclass(frozen=True)
class NF4(Format):
    """Quantiles of a normal distribution (QLoRA), as bitsandbytes has them."""

    levels: ClassVar[np.ndarray] = codebooks.NF4


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales", "base", "offset"),
    meta_fields=("format", "dtype"),
)
@dataclass(frozen=True, eq=False)
class Quantised:
    """An array in codes; `decode` gives it back.

    Attributes:
        codes: `[..., rows, groups, group]` uint8, the axis of the groups last; two to a
            byte in 4 bits, the first in the upper half.
        scales: `[..., rows, groups]` float32; uint8 with `double`.
        base: `[..., blocks]` float32, the scales of the scales; None without `double`.
        offset: `[...]` float32, the mean that was taken off the scales; or None.
        format: how it was coded.
        dtype: of the array.
    """

    codes: jax.Array
    scales: jax.Array
    base: jax.Array | None
    offset: jax.Array | None
    format: Format
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        *leading, groups, stored = self.codes.shape
        length = groups * stored * (2 if self.format.packed else 1)
        place = len(leading) + 1 + self.format.axis
        return (*leading[:place], length, *leading[place:])

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(array.nbytes for array in jax.tree.leaves(self))

    def decode(self) -> jax.Array:
        """Return the array, of `dtype`; computed in float32 and rounded once."""
        levels = self.format.levels
        codes = self.codes
        if self.format.packed:
            codes = jnp.stack([codes >> 4, codes & 15], -1)
            codes = codes.reshape(*codes.shape[:-2], -1)
        values = _looked_up(levels, codes) * self._scales()[..., None]
        values = values.reshape(*values.shape[:-2], -1)
        return jnp.moveaxis(values, -1, self.format.axis).astype(self.dtype)

    def _scales(self) -> jax.Array:
        if self.base is None or self.offset is None:
            return self.scales
        rows, groups = self.scales.shape[-2:]
        flat = self.scales.reshape(*self.scales.shape[:-2], -1)
        values = _looked_up(codebooks.dynamic(), flat)
        base = jnp.repeat(self.base, SCALES, -1)[..., : rows * groups]
        values = values * base + self.offset[..., None]
        return values.reshape(self.scales.shape)


def encode(array: jax.Array, format: Format) -> Quantised:
    """Return an array in codes; see `quantise`.

    >>> kernel = jax.random.normal(jax.random.key(0), (128, 8))
    >>> coded = encode(kernel, NF4(group=64))
    >>> coded.codes.shape, coded.scales.shape, coded.shape, coded.nbytes / kernel.nbytes
    ((8, 2, 32), (8, 2), (128, 8), 0.140625)
    >>> bool(jnp.abs(coded.decode() - kernel).max() < 0.2 * jnp.abs(kernel).max())
    True
    """
    return _encode(array, format)


@partial(jax.jit, static_argnums=1)
def _encode(array: jax.Array, format: Format) -> Quantised:
    values = jnp.moveaxis(array.astype(jnp.float32), format.axis, -1)
    values = values.reshape(*values.shape[:-1], -1, format.group)
    scales = jnp.max(jnp.abs(values), -1)
    codes = _codes(format.levels, values / jnp.where(scales > 0, scales, 1)[..., None])
    if format.packed:
        codes = codes[..., ::2] << 4 | codes[..., 1::2]
    if not format.double:
        return Quantised(codes, scales, None, None, format, array.dtype)
    flat = scales.reshape(*scales.shape[:-2], -1)
    offset = flat.mean(-1)
    flat = flat - offset[..., None]
    padding = -flat.shape[-1] % SCALES
    blocks = jnp.pad(flat, [*[(0, 0)] * (flat.ndim - 1), (0, padding)])
    blocks = blocks.reshape(*flat.shape[:-1], -1, SCALES)
    base = jnp.max(jnp.abs(blocks), -1)
    coded = _codes(
        codebooks.dynamic(), blocks / jnp.where(base > 0, base, 1)[..., None]
    )
    coded = coded.reshape(*flat.shape[:-1], -1)[..., : flat.shape[-1]]
    return Quantised(
        codes, coded.reshape(scales.shape), base, offset, format, array.dtype
    )


def _codes(levels: np.ndarray, values: jax.Array) -> jax.Array:
    thresholds = jnp.asarray((levels[:-1] + levels[1:]) / 2)
    return jnp.searchsorted(thresholds, values).astype(jnp.uint8)


def _looked_up(levels: np.ndarray, codes: jax.Array) -> jax.Array:
    steps = np.diff(levels)
    if np.allclose(steps, steps[0]):
        zero = len(levels) // 2
        return (codes.astype(jnp.float32) - zero) / zero
    return jnp.take(jnp.asarray(levels), codes.astype(jnp.int32), mode="clip")
