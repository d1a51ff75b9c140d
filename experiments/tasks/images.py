"""Image tasks of 1,000 training images, by a ViT: VTAB-1k and sets like it.

The protocol of VTAB-1k (arXiv 1910.04867): choices are made on 800 and 200 images, then
one run on all 1,000 and one evaluation on the test split.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments.meshes import split_of
from experiments.preemption import Stop
from experiments.tasks.from_scratch import pretrained
from experiments.tasks.task import Data, Outline, with_new_head
from peftjax import storage
from peftjax.data import images, source, vtab
from peftjax.models.files import CheckpointError
from peftjax.models.vit import ViT
from peftjax.training import task_metrics
from peftjax.training.losses import cross_entropy

IN_MEMORY = 2**28  # bytes of a decoded split; larger ones are read batch by batch
CROP = 4  # pixels that a crop is moved by, at most, while a base is trained


def outline(config: ConfigDict) -> Outline:
    model, norm = ViT(**config.model), config.data.normalisation
    size = config.model.image_size
    return Outline(
        model=model,
        example=(jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),),
        loss=loss_of(norm),
        outputs=outputs_of(norm),
        score=score,
        metric="accuracy",
        examples=800 if _holds_out(config) else 1000,
        note="test split",
    )


def base(config: ConfigDict, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained weights with a head of zeros.

    Raises:
        CheckpointError: no weights, or of another architecture than the
            configuration's.
    """
    if not config.paths.model:
        return _pretrained(config, outline, stop)
    options = ("image_size", "drop_path", "fused_qkv")
    model, variables = pj.models.load(
        config.paths.model,
        head=outline.model.num_classes,
        mesh=split_of(config),
        **{key: config.model[key] for key in options if key in config.model},
    )
    if model != outline.model:
        raise CheckpointError(
            f"{config.paths.model}: not the model of {config.name}:\n"
            f"  expected {outline.model}\n  found {model}\n"
            "give another --config.paths.model, or set --config.model"
        )
    return with_new_head(variables)


def data(config: ConfigDict, choose: bool) -> Data:
    """Return 1,000 training images and the test split, or 800 with 200 to choose on.

    The 200 are held out while hyperparameters are chosen, and where the best epoch is.
    """
    train, val = (_split(config, config.task, part) for part in ("train", "val"))
    if choose:
        return Data(train.arrays, None, val.arrays, (train.print, val.print))
    test = _split(config, config.task, "test")
    prints = (train.print, val.print, test.print)
    if config.selection == "best_on_validation":
        return Data(train.arrays, test.arrays, val.arrays, prints)
    return Data(_joined([train.arrays, val.arrays]), test.arrays, None, prints)


def count(config: ConfigDict) -> int | None:
    parts = ["train"] if _holds_out(config) else ["train", "val"]
    if not storage.path(config.paths.data).is_dir():
        return None
    try:
        return sum(len(_opened(config, config.task, part).labels) for part in parts)
    except (source.MissingData, ImportError):
        return None


def _holds_out(config: ConfigDict) -> bool:
    """Return whether a run chooses, an epoch or a structure, on 200 of the 1,000."""
    searches = "search" in config and config.selection != "best_on_test"
    return searches or config.selection == "best_on_validation"


def _pretrained(config: ConfigDict, outline: Outline, stop: Stop | None) -> Any:
    """Return weights trained on the images of other tasks, with a head of zeros."""
    if "pretrain" not in config:
        raise CheckpointError(
            f"{config.name}: no weights; give --config.paths.model=FILE"
        )
    if config.task in config.pretrain.tasks:
        raise CheckpointError(
            f"pretrain.tasks: {config.task} is adapted to; its base must not see it"
        )
    norm, classes = config.data.normalisation, config.pretrain.classes
    trained = pretrained(
        config,
        outline.model.clone(num_classes=classes),
        outline.example,
        functools.partial(_others, config),
        _augmented_loss(norm),
        outputs_of(norm),
        score,
        stop,
    )["params"]
    head = outline.abstract()["params"]["head"]
    return with_new_head({"params": {**trained, "head": head}})


def _others(config: ConfigDict) -> tuple[Any, Any]:
    """Return what a base is trained and validated on; each task has its own labels."""
    classes, parts = 0, {"train": [], "val": []}
    for task in config.pretrain.tasks:
        for part, found in parts.items():
            arrays = _split(config, task, part).arrays
            found.append({**arrays, "label": arrays["label"] + classes})
        classes += _split(config, task, "train").classes
    if classes != config.pretrain.classes:
        raise ValueError(
            f"pretrain.classes: expected {classes}, the sum over "
            f"{', '.join(config.pretrain.tasks)}; found {config.pretrain.classes}"
        )
    return _joined(parts["train"]), _joined(parts["val"])


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def augment(pixels: jax.Array, key: jax.Array) -> jax.Array:
    """Return images `[N, H, W, C]` moved by up to `CROP` pixels, half of them mirrored.

    The border is mirrored, too, so that no colour is made up.
    """
    mirror, place = jax.random.split(key)
    flip = jax.random.bernoulli(mirror, shape=(len(pixels), 1, 1, 1))
    pixels = jnp.where(flip, pixels[:, :, ::-1], pixels)
    border = ((0, 0), (CROP, CROP), (CROP, CROP), (0, 0))
    corners = jax.random.randint(place, (len(pixels), 2), 0, 2 * CROP + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), pixels.shape[1:])

    return jax.vmap(crop)(jnp.pad(pixels, border, mode="reflect"), corners)


@functools.cache
def _augmented_loss(norm: images.Normalisation):
    def loss(apply, batch, key):
        key, draw = jax.random.split(key)
        image = augment(batch["image"], draw)
        return loss_of(norm)(apply, {**batch, "image": image}, key)

    return loss


@functools.cache
def loss_of(norm: images.Normalisation):
    def loss(apply, batch, key):
        pixels = images.normalise(batch["image"], norm)
        logits = apply(pixels, train=True, rngs={"dropout": key})
        return cross_entropy(logits, batch["label"])

    return loss


@functools.cache
def outputs_of(norm: images.Normalisation):
    def outputs(apply, batch):
        return {"outputs": apply(images.normalise(batch["image"], norm))}

    return outputs


def score(labels, outputs):
    """Return the accuracy."""
    return {"accuracy": task_metrics.accuracy(labels, outputs.argmax(-1))}


class _Split(NamedTuple):
    arrays: dict[str, Any]
    classes: int
    print: dict[str, Any]


def _split(config: ConfigDict, task: str, part: str) -> _Split:
    return _read(*_place(config, task, part))


def _opened(config: ConfigDict, task: str, part: str) -> images.Split:
    load, name, part, folder, size = _place(config, task, part)
    return load(name, part, folder, size=size)


def _place(config: ConfigDict, task: str, part: str) -> tuple[Any, str, str, str, int]:
    """Return what reads a split, and by which arguments."""
    size, folder = config.model.image_size, config.paths.data
    if config.data.source == "vtab":
        part = {"train": "train800", "val": "val200"}.get(part, part)
        return vtab.load, task, part, folder, size
    return images.load, config.data.files[task], part, folder, size


@functools.lru_cache(maxsize=12)  # the runs of a table read the same splits
def _read(load: Any, name: str, part: str, folder: str, size: int) -> _Split:
    split = load(name, part, folder, size=size)
    in_memory = math.prod(split.images.shape) <= IN_MEMORY
    return _Split(split.arrays(in_memory), split.classes, split.describe())
