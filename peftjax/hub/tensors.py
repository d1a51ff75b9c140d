"""Named arrays in a safetensors file, read strictly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.core.paths import flatten
from peftjax.storage import replacing

PathLike = str | os.PathLike[str]
_SHOWN = 8


class AdapterFileError(ValueError):
    """An adapter file is damaged, or does not fit the model and its rules."""


def save_tree(path: PathLike, variables: Any) -> Path:
    """Write the parameters of a model, merged weights for one, as one safetensors file.

    The keys are the paths that rules match; other collections are left out.
    """
    paths, leaves, _ = flatten(variables)
    tensors = {name: leaf for name, leaf in zip(paths, leaves) if name is not None}
    with replacing(path) as new:
        write(new, tensors)
    return Path(path)


def load_tree(path: PathLike, like: Any) -> Any:
    """Read what `save_tree` wrote into the tree of `like`.

    The leaves of `like` may be abstract; those of other collections are kept from it.

    Raises:
        AdapterFileError: the file is damaged, or its names, shapes or dtypes differ.
    """
    tensors = read(Path(path))
    paths, leaves, structure = flatten(like)
    expected = {name: leaf for name, leaf in zip(paths, leaves) if name is not None}
    check_arrays(path, expected, tensors)
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


def read(file: Path) -> dict[str, jax.Array]:
    """Read arrays by name.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: the file is truncated or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a safetensors file, found none")
    try:
        return jax.device_put(load_file(file))
    except (SafetensorError, AttributeError) as error:  # the second: unknown dtypes
        raise AdapterFileError(
            f"{file}: truncated or not a safetensors file ({error}); "
            f"found {file.stat().st_size} bytes; save or copy it again"
        ) from error


def check_arrays(file: Any, expected: Mapping, found: Mapping) -> None:
    """Raise unless names, shapes and dtypes are as expected, and all is finite."""
    lines = []
    for key in sorted(expected.keys() | found.keys()):
        here = _shape(expected[key]) if key in expected else "no such array"
        there = _shape(found[key]) if key in found else "no such array"
        if here != there:
            lines.append(f"{key}: expected {here}, found {there}")
    refuse(file, "other arrays", lines)
    lines = [
        f"{key}: expected finite values, found NaN or infinity"
        for key, array in sorted(found.items())
        if jnp.issubdtype(array.dtype, jnp.inexact) and not _finite(array)
    ]
    refuse(file, "values that are not finite", lines)


def _finite(array: Any) -> bool:
    # NumPy on the host: jax.numpy would compile one program per shape.
    return bool(np.isfinite(np.asarray(array)).all())


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
