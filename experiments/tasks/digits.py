"""Five digits, by a small ViT that was trained on the other five."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments.preemption import Stop
from experiments.tasks.from_scratch import pretrained
from experiments.tasks.task import Data, Outline, with_new_head
from peftjax.data import digits
from peftjax.models.vit import ViT
from peftjax.training import task_metrics
from peftjax.training.losses import cross_entropy


def outline(config: ConfigDict) -> Outline:
    size = config.model.image_size
    return Outline(
        model=ViT(**config.model),
        example=(jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32),),
        loss=loss,
        outputs=outputs,
        score=score,
        metric="accuracy",
        examples=len(_splits(config.data)[0]["label"]),
        note="test split",
    )


def base(config: ConfigDict, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the weights trained on the other digits, with a new head."""

    def read():
        return _splits(config.pretrain)[:2]

    model, example = outline.model, outline.example
    trained = pretrained(config, model, example, read, loss, outputs, score, stop)
    return with_new_head(trained)


def data(config: ConfigDict, choose: bool) -> Data:
    train, validation, test = _splits(config.data)
    return Data(train, None if choose else test, validation)


def count(config: ConfigDict) -> int:
    return len(_splits(config.data)[0]["label"])


def loss(apply, batch, key):
    """Return the cross-entropy of each image of a batch."""
    return cross_entropy(apply(batch["image"]), batch["label"])


def outputs(apply, batch):
    """Return the logits of each image of a batch."""
    return {"outputs": apply(batch["image"])}


def score(labels, outputs):
    """Return the accuracy."""
    return {"accuracy": task_metrics.accuracy(labels, outputs.argmax(-1))}


def _splits(settings: ConfigDict) -> list[dict[str, Any]]:
    splits = _load(tuple(settings.classes), settings.split_seed)
    return [{"image": part.images, "label": part.labels} for part in splits]


@functools.cache
def _load(classes: tuple[int, ...], seed: int) -> digits.Digits:
    return digits.load(classes, seed)
