"""From the tensors of a file to the parameters of a model, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from peftjax.models.families import family_of
from peftjax.models.family import Model
from peftjax.models.files import CheckpointError, Tensor
from peftjax.models.names import Source

_STACKED = re.compile(r"((?:.*/)?(?:layers|blocks))/(.*)")


Index = tuple[slice, ...]
Read = Callable[[Index], np.ndarray]


class Leaf(NamedTuple):
    """A parameter to be filled.

    Attributes:
        shape: its shape.
        read: return a part of it, `[start:stop]` of every axis, as an array on the
            host, and read no more than that; None where no tensor holds it.
    """

    shape: tuple[int, ...]
    read: Read | None

    @property
    def size(self) -> int:
        """The number of entries."""
        return prod(self.shape)


def initial(model: Model, key: jax.Array, channels: int = 3) -> dict[str, Any]:
    """Return freshly initialised parameters by path; for use under a transform.

    Args:
        model: the model.
        key: a PRNG key.
        channels: of images, where the model's fields do not tell.
    """
    examples = family_of(model).examples(model, channels)
    examples = (jnp.zeros(example.shape, example.dtype) for example in examples)
    return flatten_dict(model.init(key, *examples)["params"], sep="/")


def unrolled(path: str, shape: tuple[int, ...]) -> list[str]:
    """Return the paths of a parameter with its layers numbered, as `names` has them.

    >>> unrolled("layers/norm/scale", (2, 8))
    ['layers_0/norm/scale', 'layers_1/norm/scale']
    >>> unrolled("layers_0/norm/scale", (8,))
    ['layers_0/norm/scale']
    """
    match = _STACKED.fullmatch(path)
    if match is None:
        return [path]
    return [f"{match[1]}_{i}/{match[2]}" for i in range(shape[0])]


def plan_leaves(
    shapes: Mapping[str, tuple[int, ...]],
    where: Mapping[str, Source],
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Leaf], set[str]]:
    """Return how to read every parameter, and the names of the tensors used.

    Args:
        shapes: of the parameters, by path.
        where: the source of every parameter of the unrolled model.
        tensors: what the file holds.

    Raises:
        CheckpointError: a tensor is of another shape or not floating.
    """
    leaves, used = {}, set()
    for path, shape in shapes.items():
        paths = unrolled(path, shape)
        own = shape[1:] if paths != [path] else shape
        parts = [where.get(one) for one in paths]
        names = [name for part in parts for name in (part.tensors if part else ("",))]
        if all(name in tensors for name in names):
            used.update(names)
            readers = [_reader(part, own, tensors) for part in parts if part]
            leaves[path] = Leaf(shape, _stacked(readers, paths != [path]))
        else:
            used.update(name for name in names if name in tensors)
            leaves[path] = Leaf(shape, None)
    return leaves, used


def _stacked(readers: Sequence[Read], stack: bool) -> Read:
    if not stack:
        return readers[0]

    def read(index: Index) -> np.ndarray:
        layers = readers[index[0]]
        first = layers[0](index[1:])
        part = np.empty((len(layers), *first.shape), first.dtype)
        part[0] = first
        for i in range(1, len(layers)):
            part[i] = layers[i](index[1:])
        return part

    return read


def _reader(
    source: Source, shape: tuple[int, ...], tensors: Mapping[str, Tensor]
) -> Read:
    """Return how to read a parameter of this shape; check what the file says."""
    number, count = source.part
    # A scalar is neither joined nor split.
    size = shape[-1] if shape else 1
    last = size * count // len(source.tensors)
    ours = (*shape[:-1], last) if shape else ()
    theirs = tuple(map(source.order.index, range(len(ours))))
    expected = source.shape or tuple(ours[i] for i in theirs)
    for name in source.tensors:
        tensor = tensors[name]
        if tensor.shape != expected or last * len(source.tensors) != size * count:
            raise CheckpointError(
                f"tensor {name}: expected shape {expected}, found {tensor.shape}; is "
                "the config.json that of these weights?"
            )
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise CheckpointError(
                f"tensor {name}: expected floating values, found {tensor.dtype}"
            )

    def piece(tensor: Tensor, index: Index) -> np.ndarray:
        if source.shape is not None:
            return tensor.read().reshape(ours)[index]
        return tensor.part(tuple(index[i] for i in theirs)).transpose(source.order)

    def read(index: Index) -> np.ndarray:
        if not shape:
            return piece(tensors[source.tensors[0]], index)
        *others, columns = index
        # of the tensors side by side, of which ours is a part
        low, high = (number * size + end for end in (columns.start, columns.stop))
        pieces = [
            piece(
                tensors[name],
                (*others, slice(max(low - start, 0), min(high - start, last))),
            )
            for name, start in zip(source.tensors, range(0, size * count, last))
            if low < start + last and start < high
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1)

    return read
