"""Load a pretrained model from the files people have: exactly, or not at all."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from peftjax import storage
from peftjax.models.families import file_head, recognise
from peftjax.models.family import NOTHING, Checkpoint, Family, Head
from peftjax.models.files import (
    CheckpointError,
    Tensor,
    find_weights,
    finite,
    open_tensors,
    read_json,
)
from peftjax.models.gguf_llama import read_gguf
from peftjax.models.leaves import Index, Leaf, Read, initial, plan_leaves
from peftjax.models.names import Source
from peftjax.models.remote import resolve

logger = logging.getLogger(__name__)
_OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def load(
    path_or_name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    inside: str = "",
    head: Head = None,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    key: jax.Array | None = None,
    allow_nonfinite: bool = False,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Load a pretrained model.

    The family, one of `FAMILIES`, is recognised from the files: a folder with
    `config.json` and safetensors, in one file or in shards with an index; a ViT also
    from timm's, or from one of Google's `.npz` files; a Llama also from a GGUF file,
    whose blocks are dequantised. Every tensor of the file is used
    or known to be without use (and logged), and every parameter is filled, except those
    of a new head. Besides the model itself one parameter at a time is in host memory.

    Args:
        path_or_name: a folder, a file, or the name `OWNER/NAME` of a repository of the
            Hugging Face Hub, of which weights, JSON and tokenizers are fetched, never
            pickles or code; where there is no network, its cache is looked into.
        revision: a branch, a tag or a commit of a repository.
        inside: a folder or a weight file of a repository.
        head: None: the head that the file has, if any; `"none"`: no head; a number of
            classes or `"regression"`: a new head, drawn from `key`; `"lm"`: that of a
            language model.
        dtype: of weights and computation; the file's own if absent.
        mesh: a mesh of `peftjax.parallel.mesh.make_mesh`, on which every parameter goes
            straight into its shards; a process reads the parts of its own devices.
        key: draws a new head; `jax.random.key(0)` if absent.
        allow_nonfinite: let NaN and infinity in the weights pass.
        **options: further fields of the module or of its configuration: `scan_layers`,
            `remat`, `hidden_dropout_prob`, a ViT's `image_size`, `fused_qkv`, ...

    Returns:
        The module and `{"params": ...}`.

    Raises:
        CheckpointError: a file is absent or out of reach, damaged, a pickle, of no
            known family, does not fit the model, or holds NaN or infinity.
        TypeError: an option is not a field of the model.
        ValueError: the model cannot have that head.
    """
    weights = find_weights(resolve(path_or_name, revision, inside))
    config, found = _opened(weights)
    tensors = {_modern(name): t for name, t in found.items()}
    with _naming(weights):
        family, kind = recognise({} if weights.suffix == ".npz" else config, tensors)
        tensors = _without_copies(tensors, kind)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        model = kind.build(config, shapes)
        chosen = file_head(family, kind, config, tensors) if head is None else head
        model = family.with_head(model, chosen)
        model = model.clone(dtype=_computed(tensors, dtype))
        image_size = options.pop("image_size", None) if family.resize else None
        model = _with_options(model, options)
        key = jax.random.key(0) if key is None else key
        leaves, draw = _match(model, family, kind, tensors, head, key)
        params = _fill(leaves, draw(), dtype, mesh, allow_nonfinite)
    if family.resize and image_size:
        model, params = family.resize(model, params, image_size)
    return model, {"params": params}


def _opened(weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `config.json`, or a GGUF file itself, says; and the tensors."""
    if weights.suffix == ".gguf":
        return read_gguf(storage.local(weights))
    beside = weights.parent / "config.json"
    config = read_json(beside) if beside.is_file() else {}
    return config, open_tensors(weights)


def _modern(name: str) -> str:
    """Return the present name of a tensor.

    The first BERT files have TensorFlow's, the first autoencoders names of their own.
    """
    if old := re.fullmatch(r"(.*mid_block\.attentions\.0\.)(\w+)(\.\w+)", name):
        return old[1] + _OLD_ATTENTION.get(old[2], old[2]) + old[3]
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _without_copies(
    tensors: Mapping[str, Tensor], kind: Checkpoint
) -> dict[str, Tensor]:
    """Return the tensors without those that repeat another.

    Raises:
        CheckpointError: one differs from what it should repeat.
    """
    found = dict(tensors)
    for name in kind.copies.keys() & tensors.keys():
        copy, of = found.pop(name), kind.copies[name]
        other = found.setdefault(of, copy)
        if other is not copy and not np.array_equal(other.read(), copy.read()):
            raise CheckpointError(
                f"tensor {name}: expected the numbers of {of}, of which it is a copy, "
                "found others; the model here has one table for both"
            )
    return found


@contextmanager
def _naming(weights: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith(str(weights)):
            raise
        raise CheckpointError(f"{weights}: {error}") from error


def _computed(tensors: Mapping[str, Tensor], dtype: Any) -> Any:
    """Return the dtype of the computation: the chosen one, or the largest tensor's."""
    largest = max(tensors.values(), key=lambda tensor: tensor.size)
    return jax.dtypes.canonicalize_dtype(dtype or largest.dtype)


def _with_options(model: Any, options: Mapping[str, Any]) -> Any:
    """Set fields of the module or of its configuration."""
    own = {field.name for field in dataclasses.fields(model)} - {"parent", "name"}
    config = getattr(model, "config", None)
    deeper = {field.name for field in dataclasses.fields(config)} if config else set()
    for name, value in options.items():
        if name in own:
            model = model.clone(**{name: value})
        elif name in deeper:
            model = model.clone(
                config=dataclasses.replace(model.config, **{name: value})
            )
        else:
            near = get_close_matches(name, own | deeper) or sorted(own | deeper)
            raise TypeError(
                f"load: {name}: not a field of {type(model).__name__}; nearest: "
                f"{', '.join(near)}"
            )
    return model


def _match(
    model: Any,
    family: Family,
    kind: Checkpoint,
    tensors: Mapping[str, Tensor],
    head: Head,
    key: Any,
) -> tuple[dict[str, Leaf], Callable[[], dict[str, Any]]]:
    """Return a leaf for every parameter, and how to draw those of a new head.

    Raises:
        CheckpointError: files and model do not fit both ways.
    """
    kept = {n: t for n, t in tensors.items() if not _given_up(n, kind, head)}
    layers = family.depth(model)
    if layers > len(kept):
        raise CheckpointError(
            f"config.json: {layers} layers, but the file has only {len(kept)} tensors"
        )
    prefix = any(name.startswith(family.prefix(model)) for name in kept)
    where = family.sources(model, kind.layout, prefix=prefix)

    try:
        channels = _channels(family, where, kept)
        shapes = _shapes(model, channels)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"config.json: {error}") from error
    leaves, used = plan_leaves(shapes, where, kept)
    fresh = [path for path, leaf in leaves.items() if leaf.read is None]
    new = kind.new if head is not None else NOTHING
    missing = [path for path in fresh if not re.fullmatch(new, path)]
    unknown = [n for n in kept.keys() - used if not re.fullmatch(kind.unused, n)]
    if missing or unknown:
        raise CheckpointError(_misfit(model, sorted(missing), sorted(unknown)))
    unused = sorted(tensors.keys() - used)
    logger.info("not used: %s; newly initialised: %s", unused, fresh)

    def draw() -> dict[str, Any]:
        return _drawn(model, channels, tuple(fresh), key)

    return leaves, draw if fresh else dict


@lru_cache(maxsize=16)
def _shapes(model: Any, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter; traced once for a model."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = jax.eval_shape(lambda key: initial(model, key, channels), key)
    return {path: array.shape for path, array in found.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _drawn(model: Any, channels: int, paths: tuple[str, ...], key: Any) -> Any:
    # Under jit only what is returned is computed, and once for all seeds compiled.
    found = initial(model, key, channels)
    return {path: found[path] for path in paths}


def _given_up(name: str, kind: Checkpoint, head: Head) -> bool:
    """Whether a tensor belongs to a head of the file that is not wanted."""
    kept = head is None or (head == "lm" and name.startswith("lm_head."))
    return not kept and re.fullmatch(kind.heads, name) is not None


def _misfit(model: Any, missing: list[str], unknown: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} parameters are in no tensor: {missing[:8]}")
    if unknown:
        parts.append(f"{len(unknown)} tensors are of no use to it: {unknown[:8]}")
    return (
        f"the file does not fit this {type(model).__name__}: {'; '.join(parts)}. Is "
        "the config.json that of these weights?"
    )


def _channels(
    family: Family, where: Mapping[str, Source], tensors: Mapping[str, Tensor]
) -> int:
    """Return the channels of images, from the patches' kernel; 3 without one."""
    source = where.get(f"{family.placements.patches}/kernel")
    patches = tensors.get(source.tensors[0]) if source else None
    if source is None or patches is None or len(patches.shape) != 4:
        return 3
    return patches.shape[source.order[2]]


def _fill(
    leaves: Mapping[str, Leaf],
    params: dict[str, Any],
    dtype: Any,
    mesh: Any,
    allow_nonfinite: bool,
) -> dict[str, Any]:
    """Return the parameters, read one at a time, and part by part onto a mesh.

    Raises:
        CheckpointError: one cannot be read, or is not finite.
    """

    def checked(path: str, read: Read, index: Index) -> np.ndarray:
        value = read(index)
        value = value if dtype is None else value.astype(jnp.dtype(dtype))
        if not allow_nonfinite and not finite(value):
            raise CheckpointError(
                f"parameter {path}: holds NaN or infinity as {value.dtype}; fetch the "
                "file again, or load with allow_nonfinite=True"
            )
        return value

    # The largest first: a copy of it fits while little else is in memory.
    for path in sorted(leaves, key=lambda path: -leaves[path].size):
        shape, read = leaves[path]
        if read is None:
            drawn = params[path]
            drawn = drawn if dtype is None else drawn.astype(jnp.dtype(dtype))
            read = np.asarray(drawn).__getitem__
        else:
            read = partial(checked, path, read)
        params[path] = _placed(shape, read, mesh)
    return unflatten_dict({path: params[path] for path in sorted(params)}, sep="/")


def _placed(shape: tuple[int, ...], read: Read, mesh: Any) -> jax.Array:
    """Place a parameter; of one that is split only this process's parts are read."""
    if mesh is None:
        return _put(read(tuple(slice(0, n) for n in shape)), [None])[0]
    from peftjax.parallel.sharding import of_leaf

    sharding = of_leaf(jax.ShapeDtypeStruct(shape, np.float32), mesh)
    places: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ends = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape))
        places.setdefault(ends, []).append(device)
    parts: list[jax.Array] = []
    for ends, devices in places.items():
        parts += _put(read(tuple(slice(*end) for end in ends)), devices)
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _put(value: np.ndarray, devices: list[Any]) -> list[jax.Array]:
    # The host's array is given away, so on a CPU it can be the parameter itself.
    parts = [jax.device_put(value, device, may_alias=True) for device in devices]
    # Transfers run on their own: without waiting, several are under way at once.
    return jax.block_until_ready(parts)
