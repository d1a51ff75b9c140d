"""What stands for x on convolutions and embeddings: only `x @ M`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from peftjax.core.method import Rows
from peftjax.core.views import TOKENS, restore, whole
from peftjax.core.weight import Weight


class ConvInput(Rows):
    """A convolution's input: `x @ M` convolves with M seen as `[*window, c_in, k]`."""

    def __init__(self, x: jax.Array, eqn: Any, weight: Weight):
        self.x, self.eqn, self.weight = x, eqn, weight
        self.dtype = x.dtype

    def __matmul__(self, matrix: jax.Array) -> jax.Array:
        params = self.eqn.params
        spec = params["dimension_numbers"]
        columns = (whole((matrix.shape[1],), TOKENS)[0],)
        view = list(self.weight.view)
        view[spec.rhs_spec[0]] = columns[0]
        kernel = restore(matrix, tuple(view), [self.weight.site.atoms[1], *columns])
        dtype = jnp.result_type(self.x, kernel)
        y = lax.conv_general_dilated(
            self.x.astype(dtype),
            kernel.astype(dtype),
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=spec,
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )
        return jnp.moveaxis(y, spec.out_spec[1], -1).reshape(-1, matrix.shape[1])

    def dropout(self, rate: float, key: jax.Array) -> ConvInput:
        keep = jax.random.bernoulli(key, 1.0 - rate, self.x.shape)
        dropped = jnp.where(keep, self.x / (1.0 - rate), jnp.zeros((), self.dtype))
        return ConvInput(dropped, self.eqn, self.weight)


class Lookup(Rows):
    """Embedding ids: `x @ M` looks up rows of M, out-of-range ids as the model does."""

    def __init__(self, ids: jax.Array, eqn: Any, weight: Weight):
        self.ids, self.eqn, self.weight = ids, eqn, weight
        self.dtype = weight.value.dtype

    def __matmul__(self, matrix: jax.Array) -> jax.Array:
        params = self.eqn.params
        dims = lax.GatherDimensionNumbers(
            offset_dims=(self.ids.ndim - 1,),
            collapsed_slice_dims=(0,),
            start_index_map=(0,),
        )
        rows = lax.gather(
            matrix,
            self.ids,
            dims,
            (1, matrix.shape[1]),
            mode=params["mode"],
            fill_value=params["fill_value"],
        )
        return rows.reshape(-1, matrix.shape[1])

    def dropout(self, rate: float, key: jax.Array) -> Lookup:
        return self
