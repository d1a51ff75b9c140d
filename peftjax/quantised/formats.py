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

from peftjax.core.coded import Coded
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
class Quantised(Coded):
    """An array in codes; `decode` gives it back.

    Attributes:
        codes: uint8, of the array's shape; in 4 bits half as long along the axis of the
            groups, the second half of the array in the upper bits.
        scales: float32, uint8 with `double`; the axis of the groups holds one a group.
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
    def shape(self) -> tuple[int, ...]:  # pyright: ignore
        """Of the array."""
        shape = list(self.codes.shape)
        shape[self.format.axis] *= 2 if self.format.packed else 1
        return tuple(shape)

    @property
    def layered(self) -> bool:
        """Whether the first axis of its arrays is the first of the array."""
        return self.ndim > 2 and self.format.axis != -self.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of all that it holds."""
        return sum(array.nbytes for array in jax.tree.leaves(self))

    def decode(self) -> jax.Array:
        """Return the array, of `dtype`; computed in float32 and rounded once."""
        format, codes = self.format, self.codes
        if format.packed:
            codes = jnp.concatenate([codes & 15, codes >> 4], format.axis)
        place = len(self.shape) + format.axis
        grouped = _divided(_looked_up(format.levels, codes), place, format.group)
        values = grouped * jnp.expand_dims(self._scales(), place + 1)
        return values.reshape(self.shape).astype(self.dtype)

    def _scales(self) -> jax.Array:
        if self.base is None or self.offset is None:
            return self.scales
        rows = jnp.moveaxis(self.scales, self.format.axis, -1)
        flat = rows.reshape(*rows.shape[:-2], -1)
        values = codebooks.dynamic_of(flat)
        base = jnp.repeat(self.base, SCALES, -1)[..., : flat.shape[-1]]
        values = (values * base + self.offset[..., None]).reshape(rows.shape)
        return jnp.moveaxis(values, -1, self.format.axis)


def _divided(array: jax.Array, place: int, group: int) -> jax.Array:
    """Divide an axis into `[groups, group]`."""
    shape = array.shape
    return array.reshape(*shape[:place], -1, group, *shape[place + 1 :])


def encode(array: jax.Array, format: Format) -> Quantised:
    """Return an array in codes; see `quantise`.

    >>> kernel = jax.random.normal(jax.random.key(0), (128, 8))
    >>> coded = encode(kernel, NF4(group=64))
    >>> coded.codes.shape, coded.scales.shape, coded.shape, coded.nbytes / kernel.nbytes
    ((64, 8), (2, 8), (128, 8), 0.140625)
    >>> bool(jnp.abs(coded.decode() - kernel).max() < 0.2 * jnp.abs(kernel).max())
    True
    """
    return _encode(array, format)


@partial(jax.jit, static_argnums=1)
def _encode(array: jax.Array, format: Format) -> Quantised:
    place = array.ndim + format.axis
    values = _divided(array.astype(jnp.float32), place, format.group)
    scales = jnp.max(jnp.abs(values), place + 1)
    values = values / jnp.expand_dims(jnp.where(scales > 0, scales, 1), place + 1)
    codes = _codes(format.levels, values).reshape(array.shape)
    if format.packed:
        lower, upper = jnp.split(codes, 2, format.axis)
        codes = lower | upper << 4
    if not format.double:
        return Quantised(codes, scales, None, None, format, array.dtype)
    rows = jnp.moveaxis(scales, format.axis, -1)
    flat = rows.reshape(*rows.shape[:-2], -1)
    offset = flat.mean(-1)
    flat = flat - offset[..., None]
    padding = [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % SCALES)]
    blocks = _divided(jnp.pad(flat, padding), flat.ndim - 1, SCALES)
    base = jnp.max(jnp.abs(blocks), -1)
    blocks = blocks / jnp.where(base > 0, base, 1)[..., None]
    coded = _codes(codebooks.dynamic(), blocks).reshape(*flat.shape[:-1], -1)
    coded = coded[..., : flat.shape[-1]].reshape(rows.shape)
    scales = jnp.moveaxis(coded, -1, format.axis)
    return Quantised(codes, scales, base, offset, format, array.dtype)


def _codes(levels: np.ndarray, values: jax.Array) -> jax.Array:
    thresholds = jnp.asarray((levels[:-1] + levels[1:]) / 2)
    return jnp.searchsorted(thresholds, values).astype(jnp.uint8)


def _looked_up(levels: np.ndarray, codes: jax.Array) -> jax.Array:
    steps = np.diff(levels)
    if np.allclose(steps, steps[0]):
        zero = len(levels) // 2
        return (codes.astype(jnp.float32) - zero) / zero
    return jax.lax.platform_dependent(
        codes, cpu=partial(_gathered, levels), default=partial(_chosen, levels)
    )


def _gathered(levels: np.ndarray, codes: jax.Array) -> jax.Array:
    return jnp.take(jnp.asarray(levels), codes.astype(jnp.int32), mode="clip")


def _chosen(levels: np.ndarray, codes: jax.Array) -> jax.Array:
    # bit by bit: an accelerator makes it a part of the product that follows, where a
    # gather would be a slow pass of its own
    found = [jnp.float32(level) for level in levels]
    for bit in range(4):
        odd = (codes >> bit & 1).astype(bool)
        found = [
            jnp.where(odd, one, zero) for zero, one in zip(found[::2], found[1::2])
        ]
    return found[0]
