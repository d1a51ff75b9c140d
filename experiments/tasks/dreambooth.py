"""A subject of a few photographs, put into a text-to-image model: DreamBooth.

Ruiz et al., arXiv 2208.12242. `paths.data/SUBJECT/` holds the photographs. With
`data.prior` an example is one of them beside an image of the subject's class, which
keeps the class as it was: from `paths.class_images`, or drawn once by the frozen model,
from the prompt of the class, into `paths.cache`. Photographs are cut to squares around
their middle, where the authors' code cuts at random: latents are made before training.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import samples
from experiments.preemption import Stop, Stopped
from experiments.records import digest
from experiments.tasks import latents, likeness
from experiments.tasks.task import Data, Outline
from peftjax import storage
from peftjax.data.squares import photographs, squares
from peftjax.diffusion import Pipeline
from peftjax.parallel.distributed import led


def outline(config: Any) -> Outline:
    unet, schedule, _, _ = latents.architecture(config)
    prior = config.data.prior
    weights = (1.0, float(prior.weight)) if prior.images else (1.0,)
    lack = likeness.lacking(config)
    return Outline(
        model=unet,
        example=latents.example(config),
        loss=latents.loss_of(schedule, weights),
        outputs=latents.outputs_of(schedule, **config.sampler),
        score=functools.partial(score, config),
        metric=likeness.metric(config),
        examples=max(prior.images, config.train.batch),
        note=(
            "mean cosine of generated pictures and photographs"
            + (f"; not computed: {lack}" if lack else "")
        ),
        entry="conv_in/bias",
        picture=functools.partial(latents.picture, config),
    )


def base(config: Any, outline: Outline, stop: Stop | None = None) -> Any:
    """Return the pretrained U-Net."""
    return latents.base(config)


def data(config: Any, choose: bool) -> Data:
    """Return photographs beside images of the class, and prompts to draw.

    Raises:
        MissingData, DataError: the subject's folder is absent, empty or damaged.
        ValueError: a prompt is too long.
    """
    pipeline, settings = latents.loaded(config), config.data
    size = settings.size
    own = latents.moments(pipeline, squares(photographs(_place(config)), size))
    texts = latents.contexts(pipeline, [settings.prompt, settings.class_prompt])
    parts = [(own, texts[0])]
    if settings.prior.images:
        files = photographs(class_images(config, pipeline))
        prior = latents.moments(pipeline, squares(files, size))
        parts.append((prior, texts[1]))
    count = max(config.train.batch, *(len(images) for images, _ in parts))
    rows = np.arange(count)
    train = {
        "moments": np.stack([images[rows % len(images)] for images, _ in parts], 1),
        "context": latents.Column(
            lambda rows: np.stack([[text for _, text in parts]] * len(rows)), count
        ),
        "label": np.zeros(count, np.int32),
    }

    def draw(prompts: Any, each: int, seed: int) -> dict[str, Any]:
        return latents.to_draw(pipeline, size, prompts, each, seed)

    shown = draw(settings.shown, latents.SHOWN, 0)
    test = None if choose else draw(settings.prompts, settings.samples, 1)
    return Data(train, test, shown)


def count(config: Any) -> int | None:
    place = storage.path(_place(config))
    if not place.is_dir():
        return None
    photos = len(photographs(place))
    return max(photos, config.data.prior.images, config.train.batch)


def score(config: Any, labels: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Return how near pictures are to the photographs, and to their prompts."""
    pipeline, settings = latents.loaded(config), config.data
    photos = squares(photographs(_place(config)), settings.size)
    means = np.split(latents.moments(pipeline, photos), 2, axis=-1)[0]
    own = float(likeness.cosines(drawn, means).mean())
    whole = len(np.unique(labels)) == len(settings.prompts)
    prompts = settings.prompts if whole else settings.shown
    pictures = functools.cache(lambda: as_pixels(latents.decode(pipeline, drawn)))
    others = likeness.scores(config, pictures, lambda: photos, prompts, labels, False)
    return {"vae_i": own, **others}


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Return images in [-1, 1] as uint8."""
    return np.round((images + 1) * 127.5).astype(np.uint8)


def class_images(config: Any, pipeline: Pipeline, stop: Stop | None = None) -> Path:
    """Return the folder of class images; those that are not there yet are drawn.

    Each is named by its number and follows from it alone, so that a process that died
    between two of them leaves what the next one needs.
    """
    if given := config.paths.get("class_images"):
        return storage.path(given)
    prior, settings = config.data.prior, config.data
    facts = (settings.class_prompt, settings.size, config.sampler, config.paths.model)
    place = storage.path(config.paths.cache) / f"class_images-{digest(*facts)}"
    files = [place / f"{i:05}.png" for i in range(prior.images)]

    def fill() -> None:
        for start in range(0, len(files), latents.CHUNK):
            part = files[start : start + latents.CHUNK]
            if all(file.exists() for file in part):
                continue
            if stop is not None and stop():
                raise Stopped("class images: stopped; the same command goes on")
            drawn = as_pixels(_drawn(config, pipeline, start))
            for file, image in zip(part, drawn):
                samples.write(file, image)

    led(fill)
    return place


def _drawn(config: Any, pipeline: Pipeline, start: int) -> np.ndarray:
    """Return a chunk of images of the class, by the frozen model."""
    side = config.data.size // pipeline.factor
    shape = (latents.CHUNK, side, side, pipeline.unet.config.in_channels)
    noise = np.random.default_rng((0, start)).standard_normal(shape, np.float32)
    texts = latents.contexts(pipeline, [config.data.class_prompt, ""])
    told, empty = (np.broadcast_to(x, (latents.CHUNK, *x.shape)) for x in texts)
    batch = {"noise": noise, "context": told, "empty": empty}
    call = _sampler(pipeline.unet, pipeline.schedule, **config.sampler)
    found = call(pipeline.variables["unet"], jax.tree.map(jnp.asarray, batch))
    return latents.decode(pipeline, np.asarray(found))


@functools.lru_cache(maxsize=1)
def _sampler(unet: Any, schedule: Any, steps: int, guidance: float) -> Any:
    outputs = latents.outputs_of(schedule, steps, guidance)

    def run(variables, batch):
        apply = functools.partial(unet.apply, variables)
        return outputs(apply, batch)["outputs"]

    return jax.jit(run)


def _place(config: Any) -> str:
    return str(storage.path(config.paths.data) / config.task)
