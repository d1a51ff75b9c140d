"""Save a model as the torch world has it: `config.json` and safetensors."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from peftjax.models import clip_configs, configs, deberta_configs, vit_configs
from peftjax.models.bert import Bert
from peftjax.models.clip import Clip
from peftjax.models.deberta import Deberta
from peftjax.models.files import INDEX, WEIGHTS, read_json
from peftjax.models.leaves import initial, unrolled
from peftjax.models.llama import Llama
from peftjax.models.names import Model, sources
from peftjax.models.vit import ViT

# What else lies in such a folder and belongs to the model.
COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

_WRITERS: dict[type, Any] = {
    Bert: configs.write_bert,
    Clip: clip_configs.write_clip,
    Deberta: deberta_configs.write_deberta,
    Llama: configs.write_llama,
}
# Model types and how the names of their classes begin.
_CLASSES = {
    "bert": "Bert",
    "clip": "CLIP",
    "deberta-v2": "DebertaV2",
    "llama": "Llama",
    "roberta": "Roberta",
    "vit": "ViT",
}


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
        model: a `Bert`, `Clip`, `Deberta`, `Llama` or `ViT`.
        variables: its `{"params": ...}`, for example what `merge` returned.
        source: the folder that the model came from: its tokenizer and the further
            entries of its `config.json` (the names of classes) go along.
        shard_bytes: a file grows no larger than this, a single tensor excepted.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: parameters and model do not fit, or the model has no equal there.
    """
    path = Path(path)
    if not isinstance(model, Model):
        known = ", ".join(kind.__name__ for kind in get_args(Model))
        raise ValueError(
            f"save: {type(model).__name__} has no equal there; expected one of "
            f"{known}. Put the tower of a ClipClassifier back into its Clip's variables"
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: expected an absent or empty folder")
    params = flatten_dict(nn.meta.unbox(variables)["params"], sep="/")
    pieces = _pieces(model, params)
    config = _config(model, params)
    if source is not None:
        config = _with_labels(read_json(Path(source) / "config.json"), config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as tmp:
        folder = Path(tmp, "model")
        folder.mkdir()
        _write(folder, pieces, params, shard_bytes)
        _write_json(folder / "config.json", config)
        if source is not None:
            _copy_companions(Path(source), folder)
        if path.exists():
            path.rmdir()
        os.replace(folder, path)


def _copy_companions(source: Path, folder: Path) -> None:
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


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


def _pieces(model: Model, params: Mapping[str, Any]) -> dict[str, _Piece]:
    """Return what makes up every tensor; check that parameters and model fit."""
    patches = params.get("patch_embed/kernel")
    channels = 3 if patches is None else patches.shape[2]
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
    where = sources(model, prefix=_head(model) is not None)
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


def _head(model: Model) -> Any:
    """Return the model's head; None where it has none."""
    if isinstance(model, ViT):
        return model.num_classes or None
    return None if isinstance(model, Clip) else model.head


def _config(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    head, task = _head(model), "ForSequenceClassification"
    if isinstance(model, ViT):
        config = vit_configs.write_hf(model, params["patch_embed/kernel"].shape[2])
        task = "ForImageClassification"
    else:
        config = _WRITERS[type(model)](model.config)
    task = {None: "Model", "lm": "ForCausalLM"}.get(head, task)
    config["architectures"] = [_CLASSES[config["model_type"]] + task]
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
        file = f"model-{i:05}-of-{len(groups):05}.safetensors"
        file = WEIGHTS if len(groups) == 1 else file
        index.update(dict.fromkeys(names, file))
        shard = {name: pieces[name].value(params) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if len(groups) > 1:
        total = {"total_size": sum(sizes.values())}
        _write_json(folder / INDEX, {"metadata": total, "weight_map": index})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
