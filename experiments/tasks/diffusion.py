"""Pictures of digits that a small DiT never saw, which it learns from a few of each.

The base is trained on the other digits. A split to evaluate holds noise and the digits
to make of it, drawn once: the outputs are pictures. A classifier that was trained on
real scans says which digits they are, and how far its features of them are from those
of real scans that were not trained on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import samples
from experiments.preemption import Stop
from experiments.tasks.from_scratch import pretrained
from experiments.tasks.task import Data, Outline
from peftjax import storage
from peftjax.data import digits
from peftjax.diffusion import NoiseSchedule, ddim, guided, noised
from peftjax.evaluation.frechet import frechet_distance
from peftjax.models.dit import DiT
from peftjax.parallel.distributed import led

UNTOLD = 0.1  # share of examples whose class is left out, as in arXiv 2207.12598
SHOWN = 10  # pictures of each digit in a grid
JUDGE = {"hidden_layer_sizes": (64,), "max_iter": 300, "random_state": 0}


def outline(config: ConfigDict) -> Outline:
    model = DiT(**config.model)
    image = (1, model.image_size, model.image_size, model.channels)
    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    settings, none = config.data, model.num_classes
    schedule = NoiseSchedule(**config.pretrain.noise)
    return Outline(
        model=model,
        example=(jax.ShapeDtypeStruct(image, jnp.float32), one, one),
        loss=loss_of(schedule, none),
        outputs=outputs_of(schedule, none, **config.sampler),
        score=functools.partial(score, real_rows(config)),
        metric="accuracy",
        examples=settings.shots * len(settings.classes),
        note=(
            f"share of {settings.samples} generated pictures of each digit that a "
            "classifier of real scans takes for that digit"
        ),
        picture=picture,
    )


def base(config: ConfigDict, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the weights trained on the other digits; `NAME-base.png` shows them."""

    def read() -> tuple[Any, Any]:
        settings = config.pretrain
        train, *_ = _scans(tuple(settings.classes), settings.split_seed)
        return train, to_draw(config, settings.classes, SHOWN)

    def shown(labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        place = storage.path(config.paths.cache) / f"{config.name}-base.png"
        led(lambda: samples.write(place, picture(labels, outputs)))
        _, validation, test = _scans(
            tuple(config.pretrain.classes), config.pretrain.split_seed
        )
        return score(lambda: _joined(validation, test), labels, outputs)

    model, example, loss = outline.model, outline.example, outline.loss
    return pretrained(config, model, example, read, loss, outline.outputs, shown, stop)


def data(config: ConfigDict, choose: bool) -> Data:
    settings = config.data
    scans, *_ = _scans(tuple(settings.classes), settings.split_seed)
    rows = _first(scans["label"], settings.shots)
    train = {name: column[rows] for name, column in scans.items()}
    test = to_draw(config, settings.classes, settings.samples, seed=1)
    validation = to_draw(config, settings.classes, settings.samples)
    return Data(train, None if choose else test, validation)


def count(config: ConfigDict) -> int:
    return config.data.shots * len(config.data.classes)


def to_draw(
    config: ConfigDict, classes: Any, each: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return a split to evaluate: labels, and the noise to begin with."""
    labels = np.repeat(np.asarray(classes, np.int32), each)
    size, channels = config.model.image_size, config.model.channels
    noise = np.random.default_rng(seed).standard_normal(
        (len(labels), size, size, channels), np.float32
    )
    return {"noise": noise, "label": labels}


@functools.cache  # the same function for the same settings: one program
def loss_of(schedule: NoiseSchedule, none: int) -> Callable[..., jax.Array]:
    """Return the mean squared error of each example, at a time drawn for it."""

    def loss(apply, batch, key):
        draw, hide = jax.random.split(key)
        x, t, target = noised(schedule, batch["image"], draw)
        untold = jax.random.bernoulli(hide, UNTOLD, t.shape)
        found = apply(x, t, jnp.where(untold, none, batch["label"]))
        return jnp.square(found - target).mean((1, 2, 3))

    return loss


@functools.cache
def outputs_of(
    schedule: NoiseSchedule, none: int, steps: int, guidance: float
) -> Callable[..., dict[str, jax.Array]]:
    """Return the sampler: DDIM, guided without a classifier."""

    def outputs(apply, batch):
        def predict(x, t, y):
            return apply(x, jnp.broadcast_to(t, len(x)), y)

        y = batch["label"]
        network = guided(predict, y, jnp.full_like(y, none), guidance)
        return {"outputs": ddim(network, schedule, batch["noise"], steps=steps)}

    return outputs


def score(
    real: Callable[[], Mapping[str, np.ndarray]],
    labels: np.ndarray,
    outputs: np.ndarray,
) -> dict[str, float]:
    """Return the accuracy of generated digits and their Fréchet distance to real ones.

    Args:
        real: returns the scans to be near to.
        labels: the digits asked for.
        outputs: pictures in [-1, 1].
    """
    judge = _judge()
    found = judge.predict(_pixels(outputs))
    features = (_features(judge, images) for images in (real()["image"], outputs))
    return {
        "accuracy": float((found == labels).mean()),
        "frechet": frechet_distance(*features),
    }


def picture(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Return the first pictures of each digit, a row for each; uint8."""
    rows = [outputs[labels == digit][:SHOWN] for digit in np.unique(labels)]
    return samples.grid(rows)


def real_rows(config: ConfigDict) -> Callable[[], Mapping[str, np.ndarray]]:
    """Return what reads the scans of the digits that are not trained on."""

    def read() -> Mapping[str, np.ndarray]:
        settings = config.data
        train, *others = _scans(tuple(settings.classes), settings.split_seed)
        rows = _first(train["label"], settings.shots)
        rest = {name: np.delete(column, rows, 0) for name, column in train.items()}
        return _joined(rest, *others)

    return read


def _first(labels: np.ndarray, shots: int) -> np.ndarray:
    rows = [np.flatnonzero(labels == digit)[:shots] for digit in np.unique(labels)]
    return np.concatenate(rows)


def _joined(*splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([s[name] for s in splits]) for name in splits[0]}


@functools.cache
def _scans(classes: tuple[int, ...], seed: int) -> list[dict[str, np.ndarray]]:
    """Return the three splits, pixels in [-1, 1]; a label is the digit itself."""
    names = np.asarray(classes, np.int32)
    return [
        {"image": 2 * part.images - 1, "label": names[part.labels]}
        for part in digits.load(classes, seed)
    ]


@functools.cache
def _judge() -> Any:
    """Return the classifier, trained on the training scans of all ten digits."""
    from sklearn.neural_network import MLPClassifier

    train, *_ = _scans(tuple(range(10)), 0)
    return MLPClassifier(**JUDGE).fit(_pixels(train["image"]), train["label"])


def _features(judge: Any, images: np.ndarray) -> np.ndarray:
    """Return what the classifier's last layer sees, `[N, 64]`."""
    return np.maximum(_pixels(images) @ judge.coefs_[0] + judge.intercepts_[0], 0)


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
