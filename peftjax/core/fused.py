"""One kernel for `y = x K + (x A) B` on a TPU.

Forward reads x and writes y; backward reads x and dy once, and writes dx. So there are
five passes over activations, and the frozen layer has four. `x A` and `dy Bᵀ` never
leave the chip's own memory. K is read once where it fits there, else once for each
block of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Of a chip's memory for a kernel, by the 128 MiB of a v5e, with room for another.
LIMIT = 64 << 20
# A block of the kernel, twice there, and one of activations.
BLOCK = 8 << 20
ROWS = 512


@dataclass(frozen=True)
class Blocks:
    """How `x [batch, rows, in]` and `K [in, out]` are divided into blocks.

    Attributes:
        batch, rows: the leading axes of x; rows are divided into blocks of `height`.
        height: rows of a block.
        d_in, d_out: of K.
        ahead: columns of K in a block of the forward pass; they divide d_out.
        back: rows of K in a block of the backward pass; they divide d_in.
    """

    batch: int
    rows: int
    height: int
    d_in: int
    d_out: int
    ahead: int
    back: int


def blocks(shape: tuple[int, ...], d_out: int, itemsize: int) -> Blocks | None:
    """Divide `x [..., in]`; None where K has no blocks of whole tiles that fit."""
    *leading, rows, d_in = (1, *shape)
    batch = prod(leading)
    if rows % 16 == 0:  # whole tiles: to flatten moves nothing
        batch, rows = 1, batch * rows
    ahead = _divisor(d_out, BLOCK // (d_in * itemsize))
    back = _divisor(d_in, BLOCK // (d_out * itemsize))
    height = min(ROWS, BLOCK // ((d_in + d_out) * itemsize) // 32 * 32)
    if ahead is None or back is None or not height:
        return None
    return Blocks(batch, rows, min(rows, height), d_in, d_out, ahead, back)


def _divisor(size: int, most: int) -> int | None:
    """Return the largest divisor of whole lanes, or all, of at most `most`."""
    if size <= most:
        return size
    fitting = (n for n in range(most // 128 * 128, 0, -128) if size % n == 0)
    return next(fitting, None)


def low_rank_dense(
    x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array
) -> jax.Array:
    """Return `x K + (x A) B`, `[..., out]`, summed in float32 and rounded once.

    Compiled for a TPU, interpreted (slowly) on a CPU; on one device, since a compiler
    does not split a kernel. It has a gradient, but no forward derivative; dots have the
    precision of `jax.default_matmul_precision`.

    Args:
        x: `[..., in]`, one leading axis at least.
        kernel: `[in, out]` of the same dtype.
        a: `[in, r]` of the same dtype.
        b: `[r, out]` of the same dtype.

    Raises:
        ValueError: shapes or dtypes do not fit, or K has no blocks (see `blocks`).
    """
    d_in, d_out = kernel.shape
    dtypes = {v.dtype for v in (x, kernel, a, b)}
    shapes = x.shape[-1:], a.shape, b.shape
    rank = a.shape[-1]
    if shapes != ((d_in,), (d_in, rank), (rank, d_out)) or len(dtypes) > 1:
        raise ValueError(
            "low_rank_dense: expected x [..., in], kernel [in, out], a [in, r] and "
            f"b [r, out] of one dtype, found "
            f"{[f'{v.dtype}{list(v.shape)}' for v in (x, kernel, a, b)]}"
        )
    cut = blocks(x.shape, d_out, x.dtype.itemsize)
    if cut is None:
        raise ValueError(
            f"low_rank_dense: a kernel [{d_in}, {d_out}] has no blocks that fit; "
            "expected multiples of 128"
        )
    precision: Any = jax.config.jax_default_matmul_precision  # pyright: ignore
    rows = x.reshape(cut.batch, cut.rows, d_in)
    y: Any = _op(cut, precision, rows, kernel, a.T, b)
    return y.reshape(*x.shape[:-1], d_out)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _op(cut: Blocks, precision: Any, x: Any, kernel: Any, a: Any, b: Any) -> Any:
    """As `low_rank_dense` on `x [batch, rows, in]`, with A as `[r, in]`."""
    height, ahead, rank = cut.height, cut.ahead, len(b)
    call = partial(
        pl.pallas_call,
        partial(_forward, partial(_dot, precision)),
        out_shape=jax.ShapeDtypeStruct((cut.batch, cut.rows, cut.d_out), x.dtype),
        grid=(cut.batch, pl.cdiv(cut.rows, height), cut.d_out // ahead),
        in_specs=[
            pl.BlockSpec((None, height, cut.d_in), lambda n, i, j: (n, i, 0)),
            pl.BlockSpec((cut.d_in, ahead), lambda n, i, j: (0, j)),
            pl.BlockSpec((rank, cut.d_in), lambda n, i, j: (0, 0)),
            pl.BlockSpec((rank, ahead), lambda n, i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((None, height, ahead), lambda n, i, j: (n, i, j)),
        scratch_shapes=[pltpu.VMEM((height, rank), x.dtype)],
    )
    work = ("parallel", "parallel", "arbitrary"), _cost(cut, x.dtype, rank, cut.ahead)
    return _compiled(call, *work)(x, kernel, a, b)


def _ahead(cut: Blocks, precision: Any, *inputs: Any) -> tuple[Any, Any]:
    return _op(cut, precision, *inputs), inputs


def _back(cut: Blocks, precision: Any, inputs: Any, dy: Any) -> tuple[Any, ...]:
    x, kernel, a, b = inputs
    height, back, rank = cut.height, cut.back, len(b)
    parts = cut.d_in // back
    call = partial(
        pl.pallas_call,
        partial(_backward, partial(_dot, precision), cut),
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((parts, rank, back), jnp.float32),
            jax.ShapeDtypeStruct(b.shape, jnp.float32),
        ],
        grid=(cut.batch, pl.cdiv(cut.rows, height), parts),
        in_specs=[
            pl.BlockSpec((None, height, back), lambda n, i, j: (n, i, j)),
            pl.BlockSpec((None, height, cut.d_out), lambda n, i, j: (n, i, 0)),
            pl.BlockSpec((back, cut.d_out), lambda n, i, j: (j, 0)),
            pl.BlockSpec((rank, back), lambda n, i, j: (0, j)),
            pl.BlockSpec((rank, cut.d_out), lambda n, i, j: (0, 0)),
        ],
        out_specs=[
            pl.BlockSpec((None, height, back), lambda n, i, j: (n, i, j)),
            pl.BlockSpec((parts, rank, back), lambda n, i, j: (0, 0, 0)),
            pl.BlockSpec((rank, cut.d_out), lambda n, i, j: (0, 0)),
        ],
        scratch_shapes=[
            pltpu.VMEM((height, rank), jnp.float32),
            pltpu.VMEM((height, rank), x.dtype),
        ],
    )
    work = ("arbitrary",) * 3, _cost(cut, x.dtype, 2 * rank, back)
    dx, da, db = _compiled(call, *work)(x, dy, kernel, a, b)
    da = da.transpose(1, 0, 2).reshape(a.shape)
    # of a frozen kernel, a product that the compiler leaves out
    dk = jnp.einsum("nti,nto->io", x, dy, precision=precision)
    return dx, dk.astype(kernel.dtype), da.astype(a.dtype), db.astype(b.dtype)


_op.defvjp(_ahead, _back)


def _compiled(
    call: Callable[..., Any], order: tuple[Any, ...], cost: pl.CostEstimate
) -> Callable[..., Any]:
    """Return the kernel as each platform runs it; on others it does not exist."""
    params = pltpu.CompilerParams(dimension_semantics=order, vmem_limit_bytes=LIMIT)
    tpu = call(compiler_params=params, cost_estimate=cost)
    cpu = call(interpret=True)
    return lambda *inputs: lax.platform_dependent(*inputs, tpu=tpu, cpu=cpu)


def _cost(cut: Blocks, dtype: Any, rank: int, part: int) -> pl.CostEstimate:
    """Count a pass, with K as often as it is read."""
    rows, width = cut.batch * cut.rows, cut.d_in + cut.d_out
    whole = part in (cut.d_out, cut.d_in)
    reads = 1 if whole else cut.batch * pl.cdiv(cut.rows, cut.height)
    moved = rows * width + reads * cut.d_in * cut.d_out + rank * width
    return pl.CostEstimate(
        flops=2 * rows * (cut.d_in * cut.d_out + rank * width),
        bytes_accessed=moved * dtype.itemsize,
        transcendentals=0,
    )


_Dot = Callable[[Any, Any, int, int], Any]


def _dot(precision: Any, left: Any, right: Any, over: int, of: int) -> Any:
    """Return the product over two axes, float32."""
    return lax.dot_general(
        left,
        right,
        (((over,), (of,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _forward(dot: _Dot, x: Any, kernel: Any, a: Any, b: Any, y: Any, low: Any) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _():
        low[...] = dot(x[...], a[...], 1, 1).astype(low.dtype)

    product = dot(x[...], kernel[...], 1, 0) + dot(low[...], b[...], 1, 0)
    y[...] = product.astype(y.dtype)


def _backward(
    dot: _Dot,
    cut: Blocks,
    x_block: Any,
    dy_block: Any,
    kernel: Any,
    a: Any,
    b: Any,
    dx: Any,
    da: Any,
    db: Any,
    low: Any,
    pulled: Any,
) -> None:
    """Write dx and sum dA and dB over all rows; `pulled` is `dy Bᵀ`."""
    n, i, j = (pl.program_id(axis) for axis in range(3))

    def present(block: Any) -> Any:
        """Return a block with zeros for rows out of range, which may hold anything."""
        if cut.rows % cut.height == 0:
            return block[...]
        row = lax.broadcasted_iota(jnp.int32, block.shape, 0) + i * cut.height
        return jnp.where(row < cut.rows, block[...], jnp.zeros((), block.dtype))

    x, dy = present(x_block), present(dy_block)

    @pl.when((n == 0) & (i == 0) & (j == 0))
    def _():
        da[...] = jnp.zeros(da.shape, da.dtype)
        db[...] = jnp.zeros(db.shape, db.dtype)

    @pl.when(j == 0)
    def _():
        low[...] = jnp.zeros(low.shape, low.dtype)
        pulled[...] = dot(dy, b[...], 1, 1).astype(pulled.dtype)

    product = dot(dy, kernel[...], 1, 1) + dot(pulled[...], a[...], 1, 0)
    dx[...] = product.astype(dx.dtype)
    da[j] += dot(pulled[...], x, 0, 0)
    low[...] += dot(x, a[...], 1, 1)

    @pl.when(j == pl.num_programs(2) - 1)
    def _():
        db[...] += dot(low[...].astype(x.dtype), dy, 0, 0)
