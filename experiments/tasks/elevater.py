"""ELEVATER's few shots (arXiv 2204.08790): CLIP's image tower and a head, 20 sets.

The head starts from the embeddings of the classes' prompts, behind a BatchNorm whose
statistics training moves. `data.shots` images of each class are drawn by `data.draw`, 5
by 2 in the protocol; while choices are made a fifth of them is held out, otherwise all
are trained on. Of VOC2007, whose images have several classes, the loss is binary
cross-entropy, averaged over classes.

`paths.data` holds each set under its name or under `data.set`: what `own_images` reads,
with the classes' names as `experiments/published/elevater_classes.json` has them, or
numbers; of VOC2007 what `peftjax.data.multi_label` reads: `voc2007classification` may
be the unpacked folder `VOC2007` by another name, or a link to it.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax

import peftjax as pj
from experiments.arguments import known
from experiments.preemption import Stop
from experiments.published import FOLDER
from experiments.tasks import own_images
from experiments.tasks.task import Data, Outline, checkpoint
from peftjax.data import class_names, folder, images, multi_label, source
from peftjax.data.errors import DataError
from peftjax.data.images import Split
from peftjax.data.tokenizer import load_tokenizer
from peftjax.models import (
    Clip,
    ClipClassifier,
    ClipVisionConfig,
    class_embeddings,
    image_classifier,
)
from peftjax.models.files import CheckpointError
from peftjax.training import task_metrics
from peftjax.training.losses import cross_entropy

SEVERAL = "11point_mAP"  # the metric of images with several classes


class Set(NamedTuple):
    """One of the 20 sets.

    Attributes:
        classes: names, in the order of the labels.
        templates: prompts with `{}` in place of the name.
        metric: of `METRICS`.
        view: of `peftjax.data.views.VIEWS`.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    metric: str
    view: str


@functools.cache
def sets() -> dict[str, Set]:
    """Return the sets by their names, as the authors of Hydra call them."""
    texts = msgspec.json.decode((FOLDER / "elevater_classes.json").read_bytes())["sets"]
    with (FOLDER / "elevater_datasets.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    found = {}
    for line in lines:
        one = texts[line["task"]]
        view = "shorter" if "crop 224" in line["resize"] else "resize"
        names = tuple(one["classes"]), tuple(one["templates"])
        found[line["task"]] = Set(*names, line["metric"], view)
    return found


def _chances(labels: np.ndarray, outputs: np.ndarray) -> float:
    return task_metrics.roc_auc(labels, outputs[:, 1] - outputs[:, 0])


def _most(metric: Callable[..., float]) -> Callable[..., float]:
    return lambda labels, outputs: metric(labels, outputs.argmax(-1))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _most(task_metrics.accuracy),
    "mean-per-class": _most(task_metrics.mean_per_class),
    "roc_auc": _chances,
    SEVERAL: task_metrics.eleven_point_map,
}


def outline(config: Any) -> Outline:
    one = sets()[known(config.task, sets(), "task")]
    vision = ClipVisionConfig(**config.model.vision)
    size, metric = vision.image_size, one.metric
    return Outline(
        model=ClipClassifier(vision, config.model.projection_dim, len(one.classes)),
        example=(jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),),
        loss=loss_of(metric == SEVERAL),
        outputs=_outputs,
        score=lambda labels, outputs: {metric: METRICS[metric](labels, outputs)},
        metric=metric,
        examples=config.data.shots * len(one.classes),
        note="test split",
        entry="image/position_embeddings/embedding",
        mutable=("batch_stats",),
    )


@functools.cache
def loss_of(several: bool):
    """Return the loss of images with one class each, or with several."""

    def loss(apply, batch, key):
        pixels = images.normalise(batch["image"], "clip")
        logits, updates = apply(pixels, train=True, mutable=["batch_stats"])
        if several:
            each = optax.sigmoid_binary_cross_entropy(logits, batch["label"])
            return each.mean(-1), updates
        return cross_entropy(logits, batch["label"]), updates

    return loss


def _outputs(apply, batch):
    return {"outputs": apply(images.normalise(batch["image"], "clip"))}


def base(config: Any, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the image tower of a CLIP and a head of the classes' prompts.

    Raises:
        CheckpointError: no weights, no CLIP, or one of another architecture.
    """
    place = checkpoint(config)
    classifier, own = _loaded(place, config.task)
    if classifier != outline.model:
        raise CheckpointError(
            f"{place}: not the model of {config.name}:\n  expected {outline.model}\n"
            f"  found {classifier}\ngive another --config.paths.model, or set "
            "--config.model"
        )
    return own


@functools.lru_cache(maxsize=1)  # the trials of a search
def _loaded(place: str, task: str) -> tuple[ClipClassifier, Any]:
    model, variables = pj.models.load(place)
    if not isinstance(model, Clip):
        raise CheckpointError(f"{place}: expected a CLIP, found {model}")
    tokenizer, one = load_tokenizer(place), sets()[task]
    texts = class_embeddings(model, variables, tokenizer, one.classes, one.templates)
    return image_classifier(model, variables, texts)


def data(config: Any, choose: bool) -> Data:
    """Return what is trained, chosen and tested on.

    Raises:
        UnreadableData: as `own_images.data`.
        DataError: the set's classes are others, or it is damaged.
    """
    classes = sets()[config.task].classes
    return own_images.arranged(config, _splits(config), choose, classes)


def count(config: Any) -> int | None:
    try:
        splits = _splits(config)
    except source.MissingData:
        return None
    chosen = config.selection == "best_on_validation"
    parts = ("train",) if chosen else ("train", "validation")
    return sum(len(splits[part].labels) for part in parts)


def _splits(config: Any) -> dict[str, Split]:
    one, place = sets()[config.task], own_images.place(config)
    size, data = config.model.vision.image_size, config.data
    options = {"size": size, "view": one.view, "shots": data.shots, "draw": data.draw}
    if one.metric == SEVERAL:
        return multi_label.load(place, classes=one.classes, **options)
    splits, names = folder.load(place, seed=data.split_seed, **options)
    places = class_names.places(str(place), names, one.classes)
    if lacks := sorted({*range(len(one.classes))} - {*places.tolist()}):
        raise DataError(
            f"{place}: expected {len(one.classes)} classes, found {len(names)}; "
            f"{one.classes[lacks[0]]!r} has no images"
        )
    return {
        part: split._replace(labels=places[split.labels])
        for part, split in splits.items()
    }
