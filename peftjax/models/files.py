"""Tensors in safetensors and npz files, read one at a time.

Nothing here runs code from a file, and nothing a file says leads out of its folder.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftjax import storage

PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".msgpack", ".h5")
SUFFIXES = (".safetensors", ".npz", ".gguf")
# How the names of weight files begin: those of `transformers`, and of `diffusers`.
STEMS = ("model", "diffusion_pytorch_model")
WHOLE = tuple(f"{stem}.safetensors" for stem in STEMS)
INDICES = tuple(f"{name}.index.json" for name in WHOLE)
_LARGEST_JSON = 2**26
_CHUNK = 2**16  # entries, which fit a processor's cache


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: its shape in the file.
        dtype: its dtype in the file.
        read: return it as an array; only then is it in memory.
        read_part: return a part of it, `[start:stop]` of every axis, without the rest;
            None where the file has no such access.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    read_part: Callable[[tuple[slice, ...]], np.ndarray] | None = None

    def part(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of it."""
        whole = all(s == slice(0, n) for s, n in zip(index, self.shape, strict=True))
        if whole or self.read_part is None:
            return self.read()[index]
        return self.read_part(index)

    @property
    def size(self) -> int:
        """The number of entries."""
        return prod(self.shape)


def finite(array: np.ndarray) -> bool:
    """Whether a floating array holds neither NaN nor infinity; it is not copied.

    >>> finite(np.array([1.0, np.nan], np.float16))
    False
    """
    flat, infinity = array.ravel(order="K"), np.array(np.inf, array.dtype)
    parts = [slice(i, i + _CHUNK) for i in range(0, flat.size, _CHUNK)]
    if array.itemsize != 2:
        return all(np.isfinite(flat[part]).all() for part in parts)
    # NumPy is slow on these. All bits of the exponent are set; in infinity no others.
    flat, infinity = flat.view(np.uint16), infinity.view(np.uint16)
    return not any(((flat[part] & infinity) == infinity).any() for part in parts)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: the file is absent, too large, not JSON, has one key twice, or
            holds another JSON value.
    """
    try:
        if (size := storage.size(path)) > _LARGEST_JSON:
            raise CheckpointError(
                f"{path}: expected JSON of at most {_LARGEST_JSON} bytes, found {size}"
            )
        text = path.read_text("utf-8")
        value = json.loads(text, object_pairs_hook=_once)
        if r"\ud" in text.lower():  # half a character is no text
            json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: not JSON of ours: nested too deep") from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"{path}: truncated or not a JSON file: {error}; copy it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: expected a JSON object, found {type(value).__name__}"
        )
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r:.80} is there twice")
    return found


def find_weights(path: Path) -> Path:
    """Return the weight file of a folder, or its index of shards, or the file itself.

    Raises:
        CheckpointError: there is none, there are several, or only a pickle file.
    """
    if path.is_dir():
        known = (*WHOLE, *INDICES)
        found = [path / name for name in known if (path / name).is_file()]
        for suffix in SUFFIXES:
            found = found or sorted(path.glob(f"*{suffix}"))
        if not found:
            for other in sorted(path.iterdir()):
                _refuse_pickle(other)
            raise CheckpointError(
                f"{path}: expected {WHOLE[0]}, {INDICES[0]}, one .npz or one .gguf "
                "file, found none"
            )
        if len(found) > 1 and found[0].name not in known:
            names = ", ".join(file.name for file in found)
            raise CheckpointError(
                f"{path}: expected one weight file, found {names}; give the path of "
                f"one, or add {INDICES[0]} if they are shards"
            )
        return found[0]
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    _refuse_pickle(path)
    if path.suffix not in SUFFIXES and path.name not in INDICES:
        raise CheckpointError(f"{path}: expected a .safetensors, .npz or .gguf file")
    return path


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file or an index of shards, by name.

    Only headers are read here.

    Raises:
        CheckpointError: a file is absent, truncated or damaged, holds pickled objects,
            or does not agree with the index.
    """
    if path.suffix == ".npz":
        return _open_npz(storage.local(path))
    if path.name.endswith(".index.json"):
        return _open_index(path)
    return _open_safetensors(storage.local(path))


def _refuse_pickle(path: Path) -> None:
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path}: refused. Files of this kind may run code when they are loaded; "
            "expected safetensors or npz. Convert it where you trust its origin, for "
            "example with transformers' save_pretrained, which writes safetensors"
        )


@contextmanager
def _reading(path: Path, what: str = "file") -> Iterator[None]:
    """Turn what a damaged file makes the libraries raise into one kind of error."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        size = storage.size(path) if path.is_file() else 0
        raise CheckpointError(
            f"{path}: cannot read the {what}: {error or type(error).__name__} "
            f"(the file has {size} bytes); it is truncated, damaged or of another "
            "kind: fetch it again"
        ) from error


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    def read(name: str) -> np.ndarray:
        # A map of its own for each tensor: the pages leave memory when it is closed.
        with _reading(path, f"tensor {name}"), safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    def read_part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        with _reading(path, f"tensor {name}"), safe_open(path, "numpy") as file:
            return file.get_slice(name)[index]

    tensors = {}
    with _reading(path), safe_open(path, "numpy") as file:
        for name in file.keys():
            part = file.get_slice(name)
            dtype = _dtype(path, name, part.get_dtype())
            shape = tuple(part.get_shape())
            tensors[name] = Tensor(
                shape, dtype, partial(read, name), partial(read_part, name)
            )
    return tensors


def _dtype(path: Path, name: str, code: str) -> np.dtype:
    import jax.numpy as jnp

    known = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    kinds = {"I": "int", "U": "uint"}
    if code in known:
        return jnp.dtype(known[code])
    if code == "BOOL":
        return np.dtype(bool)
    if code[0] in kinds and code[1:] in ("8", "16", "32", "64"):
        return np.dtype(kinds[code[0]] + code[1:])
    raise CheckpointError(
        f"{path}: tensor {name} is stored as {code}; expected float64, float32, "
        "float16 or bfloat16. Quantised checkpoints are not supported: dequantise it "
        "first"
    )


def _open_index(path: Path) -> dict[str, Tensor]:
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise CheckpointError(f"{path}: expected weight_map: {{tensor: file}}")
    for name, shard in shards.items():
        inside = isinstance(shard, str) and shard.endswith(".safetensors")
        if not inside or "/" in shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(
                f"{path}: tensor {name}: expected the name of a .safetensors file in "
                f"the same folder, found {shard!r}"
            )
    tensors = {}
    for shard in sorted(set(shards.values())):
        if not (path.parent / shard).is_file():
            raise CheckpointError(
                f"{path}: the shard {shard} is not in {path.parent}; fetch it again"
            )
        found = _open_safetensors(storage.local(path.parent / shard))
        listed = {name for name, file in shards.items() if file == shard}
        if listed ^ found.keys():
            raise CheckpointError(
                f"{path.parent / shard}: does not agree with {path.name}: missing "
                f"{sorted(listed - found.keys())[:5]}, not listed "
                f"{sorted(found.keys() - listed)[:5]}"
            )
        tensors.update(found)
    return tensors


def _open_npz(path: Path) -> dict[str, Tensor]:
    def read(name: str) -> np.ndarray:
        with _reading(path, f"array {name}"), np.load(path, allow_pickle=False) as file:
            return file[name]

    tensors = {}
    with _reading(path), zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        if len({*members}) < len(members):
            raise CheckpointError(f"{path}: expected every array once, found one twice")
        for member in members:
            name = member.removesuffix(".npy")
            with archive.open(member) as stream:
                major = np.lib.format.read_magic(stream)[0]
                header = (
                    np.lib.format.read_array_header_1_0
                    if major == 1
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = header(stream)
            if dtype.hasobject:
                raise CheckpointError(
                    f"{path}: array {name} holds pickled objects, which may run code "
                    "when they are loaded; expected numbers only"
                )
            tensors[name] = Tensor(shape, dtype, lambda name=name: read(name))
    return tensors
