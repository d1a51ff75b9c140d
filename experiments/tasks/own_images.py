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
GLoRA's few shots are (`peftjax.data.augment`); but they are resized, not cropped.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from peftjax.data import folder

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
    )


def base(config: Any, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained weights with a head of zeros."""
    return with_new_head(_loaded(config)[1])


def data(config: Any, choose: bool) -> Data:
    """Return what is trained, chosen and tested on.

    Raises:
        UnreadableData: there is no image to choose on, and choices are made.
    """
    splits, _ = folder.load(_place(config), size=_size(config), **_drawn(config))
    choosing = choose or config.selection == "best_on_validation"
    if choosing and not len(splits["validation"].labels):
        shots = "; choosing takes two shots or more" if config.data.get("shots") else ""
        raise UnreadableData(f"no validation images to choose on{shots}")
    arrays, prints = {}, []
    for name, split in splits.items():
        if (name == "test" and choose) or not len(split.labels):
            continue
        in_memory = math.prod(split.images.shape) <= IN_MEMORY
        arrays[name] = split.arrays(in_memory)
        prints.append(split.describe())
    train, validation = arrays["train"], arrays.get("validation")
    if _joins(config) and not choosing and validation is not None:
        both = train, validation
        train = {key: np.concatenate([x[key] for x in both]) for key in train}
        validation = None
    return Data(train, arrays.get("test"), validation, tuple(prints))


def count(config: Any) -> int:
    found = _opened(config, 1)
    with reading(f"{config.name}: {_place(config)}"):
        parts = found.rows(**_drawn(config))
    held = parts["validation"] if _joins(config) else ()
    chosen = config.selection == "best_on_validation"
    return len(parts["train"]) + (0 if chosen else len(held))


def _joins(config: Any) -> bool:
    """Return whether what is held out for choices is trained on where none is made."""
    return bool(config.data.get("shots") or config.data.get("refit"))


def _drawn(config: Any) -> dict[str, int]:
    data = config.data
    shots, draw = data.get("shots", 0), data.get("draw", config.seed)
    return {"seed": data.split_seed, "shots": shots, "draw": draw}


def _size(config: Any) -> int:
    model, _ = _loaded(config)
    own = getattr(model, "config", model).image_size
    return config.data.get("size", own)


def _place(config: Any) -> Path:
    """Return the folder of the task, or its npz file."""
    place = storage.path(config.paths.data) / config.data.get("set", config.task)
    file = place.with_name(f"{place.name}.npz")
    return file if file.is_file() and not place.is_dir() else place


def _opened(config: Any, size: int) -> folder.Pictures:
    with reading(config.name):
        return folder.read(_place(config), size)


def _loaded(config: Any) -> Any:
    options = config.get("model") or {}
    classes = len(_opened(config, 1).classes)
    given = tuple((key, options[key]) for key in OPTIONS if key in options)
    return _load(checkpoint(config), classes, split_of(config), given)


@functools.lru_cache(maxsize=1)  # outline, data and base of one run
def _load(path: str, classes: int, mesh: Any, options: tuple[Any, ...]) -> Any:
    return pj.models.load(path, head=classes, mesh=mesh, **dict(options))
