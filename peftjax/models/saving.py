"""Save a model as the torch world has it: `config.json` and safetensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from peftjax import storage
from peftjax.models.families import family_of
from peftjax.models.family import Family, Model
from peftjax.models.files import read_json
from peftjax.models.leaves import initial, unrolled
from peftjax.storage import replacing_folder, write_json

# What else lies in such a folder and belongs to the model.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def save(
    path: str | os.PathLike[str],
    model: Model,
    variables: Mapping[str, Any],
    *,
    source: str | os.PathLike[str] | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model in the Hugging Face layout; `load` gives back the same bits.

    The folder appears whole or not at all. One shard at a time is copied in memory.

    Args:
        path: the folder to write; it must be absent or empty.
        model: of one of `peftjax.models.FAMILIES`.
        variables: its `{"params": ...}`, for example what `merge` returned.
        source: the folder that the model came from: its tokenizer and the further
            entries of its `config.json` (the names of classes) go along.
        shard_bytes: a file grows no larger than this, a single tensor excepted.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: parameters and model do not fit, or the model has no equal there.
    """
    family = family_of(model)
    params: dict[str, Any] = flatten_dict(nn.meta.unbox(variables)["params"], sep="/")
    patches = params.get(f"{family.placements.patches}/kernel")
    channels = 3 if patches is None else patches.shape[2]
    _check(model, params, channels)
    pieces = _pieces(family, model, params)
    config = _config(family, model, params, channels)
    if source is not None:
        config = _with_labels(read_json(storage.path(source) / "config.json"), config)
    with replacing_folder(path) as folder:
        _write(folder, family.kind(model).stem, pieces, params, shard_bytes)
        write_json(folder / "config.json", config)
        if source is not None:
            _copy_companions(storage.path(source), folder)


def _copy_companions(source: Path, folder: Path) -> None:
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(storage.local(source / name), folder / name)


class _Piece(NamedTuple):
    """A tensor to be written: one layer's part of a parameter, in torch's order."""

    path: str
    layer: int | None
    part: tuple[int, int]
    order: tuple[int, ...]

    def value(self, params: Mapping[str, Any]) -> np.ndarray:
        value = params[self.path]
        value = np.asarray(value if self.layer is None else value[self.layer])
        index, count = self.part
        if count > 1:
            value = np.split(value, count, axis=-1)[index]
        return np.asarray(value.transpose(np.argsort(self.order)), order="C")


def _check(model: Model, params: Mapping[str, Any], channels: int) -> None:
    """Raise ValueError unless parameters and model fit."""
    expected = jax.eval_shape(
        lambda key: initial(model, key, channels), jax.random.key(0)
    )
    for path in sorted(expected.keys() | params.keys()):
        want = expected[path].shape if path in expected else None
        have = tuple(params[path].shape) if path in params else None
        if want != have:
            raise ValueError(
                f"save: {path}: expected shape {want}, found {have}; None is no such "
                f"parameter. Are these the variables of this {type(model).__name__}?"
            )


def _pieces(
    family: Family, model: Model, params: Mapping[str, Any]
) -> dict[str, _Piece]:
    """Return what makes up every tensor."""
    # What never has a head has its prefix always.
    whole = family.heads.attribute is None or family.head(model) is not None
    where = family.sources(model, prefix=whole)
    pieces = {}
    for path, leaf in params.items():
        paths = unrolled(path, leaf.shape)
        for i, one in enumerate(paths):
            layer = None if paths == [path] else i
            names = where[one].tensors
            for j, name in enumerate(names):
                part = (j, len(names))
                pieces[name] = _Piece(path, layer, part, where[one].order)
    return pieces


def _config(
    family: Family, model: Model, params: Mapping[str, Any], channels: int
) -> dict[str, Any]:
    head = family.head(model)
    lm = "ForConditionalGeneration" if family.seq2seq else "ForCausalLM"
    task = {None: "Model", "lm": lm}.get(head, family.heads.task)
    config = family.write_config(model, channels)
    if "_class_name" in config:  # diffusers' files name no architecture
        return config
    config.setdefault("architectures", [family.kind(model).architecture + task])
    outputs = 1 if head == "regression" else head
    if isinstance(outputs, int):
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(outputs)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(outputs)}
    largest = max(params.values(), key=lambda leaf: leaf.size)
    config["dtype"] = config["torch_dtype"] = str(largest.dtype)
    return config


def _with_labels(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new entries over the old; class names stay where their number does."""
    labels = {
        name: old[name]
        for name in ("id2label", "label2id")
        if len(old.get(name) or ()) == len(new.get(name, ())) > 0
    }
    return {**old, **new, **labels}


def _write(
    folder: Path,
    stem: str,
    pieces: Mapping[str, _Piece],
    params: Mapping[str, Any],
    shard_bytes: int,
) -> None:
    from safetensors.numpy import save_file

    groups: list[list[str]] = [[]]
    sizes, filled = {}, 0
    for name, piece in pieces.items():
        leaf = params[piece.path]
        layers = 1 if piece.layer is None else leaf.shape[0]
        sizes[name] = leaf.nbytes // layers // piece.part[1]
        if groups[-1] and filled + sizes[name] > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += sizes[name]
    index = {}
    for i, names in enumerate(groups, 1):
        part = "" if len(groups) == 1 else f"-{i:05}-of-{len(groups):05}"
        file = f"{stem}{part}.safetensors"
        index.update(dict.fromkeys(names, file))
        shard = {name: pieces[name].value(params) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if len(groups) > 1:
        total = {"total_size": sum(sizes.values())}
        index_file = folder / f"{stem}.safetensors.index.json"
        write_json(index_file, {"metadata": total, "weight_map": index})
