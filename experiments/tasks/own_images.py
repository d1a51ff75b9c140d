"""Your own images, `<class>/<image>` or an npz file, by a pretrained ViT or DINOv2.

`paths.data` holds them under the name of the task, or under `data.set`, and
`paths.model` is the checkpoint. They are split by `data.split_seed` into training,
validation and test examples, eight, one and one in ten of each class, unless they are
split already. `data.size` is the side they are resized to, by default the model's.

With `data.refit` the validation images are for choices alone: where none is made they
are trained on too, as VTAB does.

With `data.shots`, k, a run trains on k images of each class, drawn by `data.draw`, by
default the run's seed, and k of a draw are among its 2k. While hyperparameters are
chosen, and where the best epoch is, a fifth of the k is held out for that, as ELEVATER
does, whose draw is 2.

With `data.augment` the images of training are changed at random, anew in each step, as
GLoRA's few shots are (`peftjax.data.augment`): those that were resized, or, where it is
`"cropped"`, random parts of the files' own. `data.view`, of `peftjax.data.views`, is
what is seen of all others, the whole by default.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import peftjax as pj
from experiments.meshes import split_of
from experiments.preemption import Stop
from experiments.tasks.images import IN_MEMORY, loss_of, outputs_of, score
from experiments.tasks.task import (
    Data,
    Outline,
    UnreadableData,
    checkpoint,
    reading,
    with_new_head,
)
from peftjax import storage
from peftjax.data import augment, folder
from peftjax.data.images import Split
from peftjax.data.pipeline import Augment
from peftjax.data.views import original

CROPPED = "cropped"
OPTIONS = ("image_size", "drop_path", "fused_qkv", "dtype")


def outline(config: Any) -> Outline:
    """Return what follows from the configuration, the checkpoint and the classes."""
    model, _ = _loaded(config)
    norm, size = config.data.normalisation, _size(config)
    return Outline(
        model=model,
        example=(jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),),
        loss=loss_of(norm),
        outputs=outputs_of(norm),
        score=score,
        metric="accuracy",
        examples=count(config),
        note="test split",
        augment=augment_of(config),
    )


def base(config: Any, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained weights with a head of zeros."""
    return with_new_head(_loaded(config)[1])


def data(config: Any, choose: bool) -> Data:
    """Return what is trained, chosen and tested on.

    Raises:
        UnreadableData: there is no image to choose on, and choices are made.
    """
    splits, classes = folder.load(place(config), **_seen(config), **_drawn(config))
    return arranged(config, splits, choose, classes)


def arranged(
    config: Any, splits: Mapping[str, Split], choose: bool, classes: tuple[str, ...]
) -> Data:
    """Return what is trained, chosen and tested on, of splits that are read.

    Raises:
        UnreadableData: as `data`.
    """
    choosing = choose or config.selection == "best_on_validation"
    if choosing and not len(splits["validation"].labels):
        shots = "; choosing takes two shots or more" if config.data.get("shots") else ""
        raise UnreadableData(f"no validation images to choose on{shots}")
    read = {
        name: split
        for name, split in splits.items()
        if len(split.labels) and not (name == "test" and choose)
    }
    prints = tuple(split.describe() for split in read.values())
    if _joins(config) and not choosing and "validation" in read:
        read["train"] = folder.joined(read["train"], read.pop("validation"))
    cropped = config.data.get("augment") == CROPPED
    arrays = {}
    for name, split in read.items():
        if cropped and name == "train":
            split = split._replace(images=split.images.seen(original))
            arrays[name] = split.arrays()  # of many sizes, and too large for memory
        else:
            small = math.prod(split.images.shape) <= IN_MEMORY
            arrays[name] = split.arrays(in_memory=small)
    test, validation = arrays.get("test"), arrays.get("validation")
    return Data(arrays["train"], test, validation, prints, classes)


def augment_of(config: Any) -> Augment | None:
    """Return what `data.augment` says."""
    how = config.data.get("augment")
    if how == CROPPED:
        return augment.cropped(_size(config))
    return augment.augment if how else None


def count(config: Any) -> int:
    found = _opened(config, 1)
    with reading(f"{config.name}: {place(config)}"):
        parts = found.rows(**_drawn(config))
    held = parts["validation"] if _joins(config) else ()
    return len(parts["train"]) + (0 if _holds_out(config) else len(held))


def _holds_out(config: Any) -> bool:
    """Return whether a run chooses an epoch, or trains a supernet and searches it."""
    searches = "search" in config and config.selection != "best_on_test"
    return searches or config.selection == "best_on_validation"


def _joins(config: Any) -> bool:
    """Return whether what is held out for choices is trained on where none is made."""
    return bool(config.data.get("shots") or config.data.get("refit"))


def _drawn(config: Any) -> dict[str, int]:
    data = config.data
    shots, draw = data.get("shots", 0), data.get("draw", config.seed)
    return {"seed": data.split_seed, "shots": shots, "draw": draw}


def _seen(config: Any) -> dict[str, Any]:
    return {"size": _size(config), "view": config.data.get("view", "resize")}


def _size(config: Any) -> int:
    if "size" in config.data:
        return config.data.size
    model, _ = _loaded(config)
    return getattr(model, "config", model).image_size


def place(config: Any) -> Path:
    """Return the folder of the task, or its npz file."""
    found = storage.path(config.paths.data) / config.data.get("set", config.task)
    file = found.with_name(f"{found.name}.npz")
    return file if file.is_file() and not found.is_dir() else found


def _opened(config: Any, size: int) -> folder.Pictures:
    with reading(config.name):
        return folder.read(place(config), size)


def _loaded(config: Any) -> Any:
    options = config.get("model") or {}
    classes = len(_opened(config, 1).classes)
    given = tuple((key, options[key]) for key in OPTIONS if key in options)
    return _load(checkpoint(config), classes, split_of(config), given)


@functools.lru_cache(maxsize=1)  # outline, data and base of one run
def _load(path: str, classes: int, mesh: Any, options: tuple[Any, ...]) -> Any:
    return pj.models.load(path, head=classes, mesh=mesh, **dict(options))
