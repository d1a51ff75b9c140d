"""Adapters of the torch library, ready for `adapt` on a model of this library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from peftjax import storage
from peftjax.core.method import Method
from peftjax.core.paths import flatten
from peftjax.hub.tensors import AdapterFileError, PathLike
from peftjax.hub.torch import prefixes, routers
from peftjax.hub.torch.codecs import FIELDS, READERS
from peftjax.hub.torch.config import CONFIG, Config, read_config
from peftjax.hub.torch.heads import check_heads, check_tied
from peftjax.hub.torch.modules import Modules
from peftjax.hub.torch.reading import OUTPUT, SHARED, Reading, take
from peftjax.hub.torch.rules import Adapters, collect
from peftjax.models.families import family_of
from peftjax.models.family import Model
from peftjax.models.files import CheckpointError, Tensor, open_tensors

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_EITHER = re.compile(rf"{re.escape(PREFIX)}|{re.escape(SHARED)}[^.]+$")
_PICKLE = "adapter_model.bin"


def load_torch(
    folder: PathLike, model: Model, variables: Any
) -> tuple[dict[str, Method], Adapters]:
    """Read an adapter that the torch library wrote.

    The methods are those of `codecs.CODECS`, prefixes and X-LoRA, on unrolled and on
    scanned layers.
    Biases and modules trained beside the adapter come as `Full`. A DoRA with rsLoRA's
    scale becomes a DoRA whose alpha contains it.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`; no other
            file is opened, but those two in the folders of X-LoRA's modules within.
        model: the module that `peftjax.models.load` returned.
        variables: its variables. Shapes suffice, unless the file repeats weights of the
            base model, which are then compared.

    Returns:
        Rules and adapters: `adapt(model.apply, variables, ..., rules=rules)` plans the
        model for these adapters. All arrays are float32.

    Raises:
        FileNotFoundError: one of the files is absent.
        AdapterFileError: a file is damaged or a pickle; the targets are not in this
            model; a field of the configuration has no equal here; tensors are missing,
            unexpected or of another shape; scanned layers would need several methods.
    """
    folder = storage.path(folder)
    others = {prefixes.TYPE: prefixes.FIELDS, routers.TYPE: routers.FIELDS}
    config = read_config(folder / CONFIG, {**FIELDS, **others})
    if config["peft_type"] == routers.TYPE:
        return _mixed(folder, config, model, variables)
    of_prefix = config["peft_type"] == prefixes.TYPE
    start, names = (prefixes.START, prefixes.NAMES) if of_prefix else (PREFIX, _EITHER)
    tensors, params = _open_tensors(folder, start, names), _params(variables)
    with _naming(folder):
        check_heads(model, config, _without_copies(config, tensors))
        own = prefixes.taken(config, tensors, model) if of_prefix else ({}, {})
        if not of_prefix:
            config, tensors = READERS[config["peft_type"]].unpack(config, tensors)
        modules = _modules(model, params, tensors)
        reading = Reading(config, tensors, modules, params)
        found = {} if of_prefix else reading.adapted()
        found = {**found, **reading.biases(), **reading.saved()}
        own_copy = reading.tied_copies(model, found)
        check_tied(model, {leaf.path for leaf in found} - own_copy)
        reading.check_rest(type(model).__name__)
        rules, adapters = collect(found, params)
        shared = jax.tree.map(jnp.asarray, reading.shared)
        adapters |= {"": shared} if shared else {}
        return {**own[0], **rules}, {**own[1], **adapters}


def _params(variables: Any) -> dict[str, Any]:
    paths, leaves, _ = flatten(variables)
    return {p: leaf for p, leaf in zip(paths, leaves) if p is not None}


def _mixed(
    folder: Path, config: Config, model: Model, variables: Any
) -> tuple[dict[str, Method], Adapters]:
    """Return rules and adapters of X-LoRA, whose modules lie in folders below."""
    tensors = _open_tensors(folder, routers.START, routers.NAMES)
    if not tensors:
        raise AdapterFileError(
            f"{folder / TENSORS}: expected a router, found no tensor; release 0.21 of "
            "the torch library leaves it out. Write there what its state_dict() holds "
            "under 'internal_xlora_classifier'"
        )
    with _naming(folder):

        def load(module: Path) -> tuple[dict[str, Method], Adapters]:
            read_config(module / CONFIG, FIELDS)  # no router within a router
            return load_torch(module, model, variables)

        found = routers.mixed(
            folder, config, model, _params(variables), load, partial(take, tensors)
        )
    return found.rules, found.adapters


def _open_tensors(
    folder: Path, start: str, names: re.Pattern[str]
) -> dict[str, Tensor]:
    """Return the tensors by their names in the torch model, which follow a start."""
    file = folder / TENSORS
    if not file.is_file() and (folder / _PICKLE).is_file():
        raise AdapterFileError(
            f"{folder / _PICKLE}: refused. A pickle may run code when it is loaded; "
            f"expected {TENSORS}. Convert it where you trust its origin: the torch "
            "library's save_pretrained writes safetensors"
        )
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected an adapter's tensors")
    try:
        tensors = open_tensors(file)
    except CheckpointError as error:
        raise AdapterFileError(str(error)) from error
    if strange := [name for name in tensors if not names.match(name)]:
        raise AdapterFileError(
            f"{file}: expected names that begin with {start}, found "
            f"{', '.join(strange[:5])}; is this an adapter of the torch library?"
        )
    return {name.removeprefix(start): tensor for name, tensor in tensors.items()}


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OverflowError, RecursionError, re.error) as error:
        raise AdapterFileError(f"{folder}: {error}") from error


def _modules(
    model: Model, params: Mapping[str, Any], names: Mapping[str, Any]
) -> Modules:
    """Return the model under those names of torch's that a file has."""
    shapes = {path: tuple(leaf.shape) for path, leaf in params.items()}
    family = family_of(model)
    layouts, start = family.torch_layouts, family.prefix(model)
    prefix = any(name.startswith(start) for name in names)

    def known(modules: Modules) -> int:
        tensors = [*modules.leaves, *modules.fused]
        owners = tuple(f"{tensor.rpartition('.')[0]}." for tensor in tensors)
        return sum(name.startswith(owners) for name in names)

    return max((Modules(model, shapes, one, prefix) for one in layouts), key=known)


def _without_copies(config: Config, names: Mapping[str, Any]) -> list[str]:
    """Return the names but those of a tied output layer's copy of an adapter."""
    reader = READERS.get(config["peft_type"])
    if reader is None or not reader.tied:
        return [*names]
    copy, whole = f"{OUTPUT}.", (".weight", ".bias")
    return [n for n in names if not n.startswith(copy) or n.endswith(whole)]
