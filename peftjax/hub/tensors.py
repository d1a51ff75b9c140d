"""Named arrays in a safetensors file, read strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax import storage
from peftjax.core.coded import decoded
from peftjax.core.paths import flatten
from peftjax.models.files import CheckpointError, finite, open_tensors

PathLike = str | os.PathLike[str]
_SHOWN = 8


class AdapterFileError(ValueError):
    """An adapter file is damaged, or does not fit the model and its rules."""


def save_tree(path: PathLike, variables: Any) -> Path:
    """Write the parameters of a model, merged weights for one, as one safetensors file.

    The keys are the paths that rules match; other collections are left out.
    """
    paths, leaves, _ = flatten(variables)
    known = {name: leaf for name, leaf in zip(paths, leaves) if name is not None}
    tensors = {name: decoded(leaf) for name, leaf in known.items()}
    with storage.replacing(path) as new:
        write(new, tensors)
    return storage.path(path)


def load_tree(path: PathLike, like: Any) -> Any:
    """Read what `save_tree` wrote into the tree of `like`.

    The leaves of `like` may be abstract; those of other collections are kept from it.

    Raises:
        AdapterFileError: the file is damaged, or its names, shapes or dtypes differ.
    """
    paths, leaves, structure = flatten(like)
    expected = {name: leaf for name, leaf in zip(paths, leaves) if name is not None}
    tensors = read(storage.path(path), expected)
    new = [leaf if name is None else tensors[name] for name, leaf in zip(paths, leaves)]
    return jax.tree.unflatten(structure, new)


def write(file: Path, tensors: Mapping[str, Any]) -> None:
    """Write arrays by name.

    Raises:
        OSError: the file cannot be written; the disk is full, for one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = {k: np.asarray(v, order="C") for k, v in tensors.items()}
    try:
        save_file(arrays, file)
    except SafetensorError as error:
        raise OSError(f"{file}: not written: {error}") from error


def read(file: Path, expected: Mapping | None = None) -> dict[str, jax.Array]:
    """Read arrays by name.

    Args:
        file: the file.
        expected: arrays or their shapes; unless the file's header says the same, no
            array is read.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: the file is truncated or of another format, or holds other
            arrays; a value is not finite.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a safetensors file, found none")
    try:
        tensors = open_tensors(file)
        refuse(file, "other arrays", _others(expected or tensors, tensors))
        arrays = {name: tensor.read() for name, tensor in tensors.items()}
    except CheckpointError as error:
        raise AdapterFileError(str(error)) from error
    refuse(file, "values that are not finite", _not_finite(arrays))
    return jax.device_put(arrays)


def expected_arrays(peft: Any) -> dict[str, dict[str, Any]]:
    """Return the shapes of the adapters of a plan, `{path: {name: shape}}`."""
    variables = jax.tree.unflatten(peft.structure, peft.leaves.avals)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(peft.init, key, variables)


def flat(adapters: Mapping[str, Any]) -> dict[str, Any]:
    """Return adapters by `path:name`."""
    return {
        f"{path}:{name}": array
        for path, names in adapters.items()
        for name, array in names.items()
    }


def check_arrays(file: Any, expected: Mapping, found: Mapping) -> None:
    """Raise unless names, shapes and dtypes are as expected, and all is finite."""
    refuse(file, "other arrays", _others(expected, found))
    refuse(file, "values that are not finite", _not_finite(found))


def _others(expected: Mapping, found: Mapping) -> list[str]:
    lines = []
    for key in sorted(expected.keys() | found.keys()):
        here = _shape(expected[key]) if key in expected else "no such array"
        there = _shape(found[key]) if key in found else "no such array"
        if here != there:
            lines.append(f"{key:.200}: expected {here}, found {there}")
    return lines


def _not_finite(arrays: Mapping) -> list[str]:
    return [
        f"{key}: expected finite values, found NaN or infinity"
        for key, array in sorted(arrays.items())
        if jnp.issubdtype(array.dtype, jnp.inexact) and not finite(np.asarray(array))
    ]


def _shape(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def refuse(file: Any, what: str, lines: Sequence[str]) -> None:
    """Raise if there are lines, each a difference; the first few are shown."""
    if lines:
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        listed = "\n  ".join([*lines[:_SHOWN], *more])
        raise AdapterFileError(
            f"{file} holds {what}; found is what the file says:\n  {listed}\n"
            "Use the model and the rules that the adapters were saved with (read_rules)"
        )
