"""Images drawn from a second image: edges, segments, landmarks, and a prompt.

The network is `ControlledUNet`: a signal encoder beside the adapted U-Net, as in OFT's
and HRA's code. `paths.data` holds the files of `data.files`, JSON lines of pairs
(`peftjax.data.pairs`); a batch's latents and states are made when it is read.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.preemption import Stop
from experiments.tasks import latents, likeness
from experiments.tasks.dreambooth import as_pixels
from experiments.tasks.task import Data, Outline
from peftjax import storage
from peftjax.data.pairs import Pair, read_images, read_pairs
from peftjax.diffusion import Pipeline
from peftjax.models import ControlledUNet


def outline(config: Any) -> Outline:
    _, schedule, _, _ = latents.architecture(config)
    size, lack = config.data.size, likeness.lacking(config)
    signal = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return Outline(
        model=_model(config),
        example=(*latents.example(config), signal),
        loss=latents.loss_of(schedule, (1.0,)),
        outputs=latents.outputs_of(schedule, **config.sampler),
        score=functools.partial(score, config),
        metric=likeness.metric(config),
        examples=config.data.examples,
        note=(
            "mean cosine of a generated picture and the image of its signal; not "
            f"computed: {'; '.join(filter(None, [lack, config.data.unscored]))}"
        ),
        entry="unet/conv_in/bias",
        picture=functools.partial(latents.picture, config),
    )


def _model(config: Any) -> ControlledUNet:
    """Return the network; its encoder halves an image as often as the autoencoder."""
    unet, _, factor, _ = latents.architecture(config)
    widths = ControlledUNet.widths[-(factor.bit_length()) :]
    return ControlledUNet(unet.config, widths, unet.remat, unet.dtype)


def base(config: Any, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained U-Net beside a fresh encoder, whose result is zero."""

    def start(key: Any) -> Any:
        zeros = [jnp.zeros(x.shape, x.dtype) for x in outline.example]
        return outline.model.init(key, *zeros)["params"]["signal"]

    signal = jax.jit(start)(jax.random.key(0))
    return {"params": {"unet": latents.base(config)["params"], "signal": signal}}


def data(config: Any, choose: bool) -> Data:
    """Return the pairs of training, and prompts with signals to draw.

    Raises:
        MissingData, DataError: a list or an image is absent or damaged.
        ValueError: a prompt is too long.
    """
    pipeline, train = latents.loaded(config), _pairs(config, "train")
    pipeline.prompt_ids([pair.prompt for pair in train])  # raises before any step
    size = config.data.size
    columns = {
        "moments": lambda own: latents.moments(pipeline, read_images(own, size)[0])[
            :, None
        ],
        "context": lambda own: latents.contexts(pipeline, [x.prompt for x in own])[
            :, None
        ],
        "signal": lambda own: read_images(own, size)[1],
    }
    arrays: dict[str, Any] = {
        name: latents.Column(
            lambda rows, read=read: read([train[i] for i in rows]), len(train)
        )
        for name, read in columns.items()
    }
    arrays["label"] = np.zeros(len(train), np.int32)
    shown = _pairs(config, "test")[: config.data.shown]
    test = None if choose else _drawn(config, pipeline, _pairs(config, "test"), 1)
    return Data(arrays, test, _drawn(config, pipeline, shown, 0))


def _drawn(
    config: Any, pipeline: Pipeline, pairs: list[Pair], seed: int
) -> dict[str, Any]:
    prompts = [pair.prompt for pair in pairs]
    split = latents.to_draw(pipeline, config.data.size, prompts, 1, seed)

    def signals(rows: np.ndarray) -> np.ndarray:
        return read_images([pairs[i] for i in rows], config.data.size)[1]

    return {**split, "signal": latents.Column(signals, len(pairs))}


def count(config: Any) -> int | None:
    place = storage.path(config.paths.data) / config.data.files["train"]
    return len(read_pairs(place)) if place.is_file() else None


def score(config: Any, labels: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Return how near pictures are to the images whose signals they are drawn from."""
    pipeline = latents.loaded(config)
    pairs = _pairs(config, "test")[: len(labels)]
    images, _ = read_images(pairs, config.data.size)
    means = np.split(latents.moments(pipeline, images), 2, axis=-1)[0]
    own = likeness.cosines(drawn, means).diagonal().mean()
    pictures = functools.cache(lambda: as_pixels(latents.decode(pipeline, drawn)))
    prompts = [pair.prompt for pair in pairs]
    others = likeness.scores(config, pictures, lambda: images, prompts, labels, True)
    return {"vae_i": float(own), **others}


def _pairs(config: Any, part: str) -> list[Pair]:
    return read_pairs(storage.path(config.paths.data) / config.data.files[part])
