"""What the tasks of Stable Diffusion share: latents, loss, sampler, pictures.

Images become the moments of their latents and prompts the text encoder's states before
training: neither encoder is trained. What needs no file is said without one, so that a
dry run knows Stable Diffusion 1.5's U-Net.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import samples
from experiments.checks import UnfitSettings
from experiments.meshes import split_of
from experiments.tasks.task import checkpoint
from peftjax.diffusion import NoiseSchedule, Pipeline, ddim, guided, load_pipeline
from peftjax.diffusion.schedule import add_noise, target
from peftjax.models import UNet2DConditionModel, UNetConfig

CHUNK = 8  # images or prompts that an encoder takes at once
SHOWN = 4  # pictures of each prompt in a grid
FACTOR, TOKENS = 8, 77  # of Stable Diffusion 1.5


class Column:
    """A column of a split that is computed where it is read.

    Args:
        read: returns the arrays of some rows.
        length: how many there are.
    """

    def __init__(self, read: Callable[[np.ndarray], np.ndarray], length: int):
        self.read, self.length = read, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.read(np.arange(self.length)[rows])


def loaded(config: Any) -> Pipeline:
    """Return the pipeline of `paths.model`.

    Raises:
        CheckpointError: it is not given, or as `load_pipeline`.
    """
    options = config.model
    return _loaded(checkpoint(config), options.get("dtype"), options.get("remat"))


@functools.lru_cache(maxsize=1)  # outline, data and base of one run
def _loaded(path: str, dtype: Any, remat: Any) -> Pipeline:
    return load_pipeline(path, dtype=dtype, remat=bool(remat))


def architecture(config: Any) -> tuple[UNet2DConditionModel, NoiseSchedule, int, int]:
    """Return the U-Net, the process, how much smaller latents are, and tokens.

    Those of the files, or of Stable Diffusion 1.5 where no file is named.

    Raises:
        UnfitSettings: `data.size` is no size of this U-Net's images.
    """
    if config.paths.model:
        found = loaded(config)
        tokens = found.text_encoder.config.max_position_embeddings
        known = found.unet, found.schedule, found.factor, tokens
    else:
        options = {**config.model}
        dtype = jnp.dtype(options.get("dtype") or "float32")
        unet = UNet2DConditionModel(UNetConfig(), bool(options.get("remat")), dtype)
        known = unet, NoiseSchedule(), FACTOR, TOKENS
    unit = known[2] * 2 ** (len(known[0].config.block_out_channels) - 1)
    size = config.data.size
    if size < 1 or size % unit:
        near = max(unit, round(size / unit) * unit)
        raise UnfitSettings(
            f"{config.name}: data.size={size}: expected a multiple of {unit}, the side "
            f"that autoencoder and U-Net halve; the nearest is {near}"
        )
    return known


def example(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of one call of the U-Net."""
    unet, _, factor, tokens = architecture(config)
    side, inner = config.data.size // factor, unet.config
    return (
        jax.ShapeDtypeStruct((1, side, side, inner.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens, inner.cross_attention_dim), jnp.float32),
    )


def base(config: Any) -> Any:
    """Return the U-Net's variables, on the mesh where it splits them."""
    variables = loaded(config).variables["unet"]
    mesh = split_of(config)
    if mesh is None:
        return variables
    from peftjax.parallel.sharding import shard

    return shard(variables, mesh=mesh)


def moments(pipeline: Pipeline, images: np.ndarray) -> np.ndarray:
    """Return mean and deviation of latents, side by side, scaled for diffusion.

    Args:
        pipeline: whose autoencoder it is.
        images: uint8 `[N, H, W, 3]`.

    Returns:
        float32 `[N, h, w, 2 channels]`.
    """
    encode, scale = _encoder(pipeline.vae), pipeline.vae.config.scaling_factor
    variables = pipeline.variables["vae"]
    return scale * chunks(lambda x: encode(variables, x), images)


def contexts(pipeline: Pipeline, prompts: Sequence[str]) -> np.ndarray:
    """Return the text encoder's states, float32 `[N, tokens, features]`.

    Raises:
        ValueError: a prompt is too long.
    """
    call, ids = _reader(pipeline.text_encoder), pipeline.prompt_ids(prompts)
    variables = pipeline.variables["text_encoder"]
    return chunks(lambda x: call(variables, x), ids)


def decode(pipeline: Pipeline, latents: np.ndarray) -> np.ndarray:
    """Return images in [-1, 1], float32 `[N, H, W, 3]`."""
    call, variables = _decoder(pipeline.vae), pipeline.variables["vae"]
    scale = pipeline.vae.config.scaling_factor
    found = chunks(lambda x: call(variables, x), latents / np.float32(scale))
    return found.clip(-1, 1)


@functools.lru_cache(maxsize=2)
def _encoder(vae: Any) -> Any:
    def encode(variables, images):
        x = images.astype(jnp.float32) / 127.5 - 1
        found = vae.apply(variables, x, method="encode")
        return jnp.concatenate([found.mean, jnp.exp(0.5 * found.log_variance)], -1)

    return jax.jit(encode)


@functools.lru_cache(maxsize=2)
def _decoder(vae: Any) -> Any:
    return jax.jit(functools.partial(vae.apply, method="decode"))


@functools.lru_cache(maxsize=2)
def _reader(text: Any) -> Any:
    def read(variables, ids):
        return text.apply(variables, ids).hidden.astype(jnp.float32)

    return jax.jit(read)


def chunks(call: Callable[[np.ndarray], Any], rows: np.ndarray) -> np.ndarray:
    """Return what a compiled function makes of rows, always as many at once."""
    found = []
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        short = CHUNK - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], short, 0)])
        found.append(np.asarray(call(full))[: len(part)])
    return np.concatenate(found)


def conditions(batch: Any, context: jax.Array) -> tuple[jax.Array, ...]:
    """Return what the network is told: the text, and an image where there is one."""
    if "signal" not in batch:
        return (context,)
    return context, batch["signal"].astype(jnp.float32) / 255


@functools.cache  # the same function for the same settings: one program
def loss_of(
    schedule: NoiseSchedule, weights: tuple[float, ...]
) -> Callable[..., jax.Array]:
    """Return the loss of each example: squared errors of its images, weighted.

    Args:
        schedule: the process.
        weights: of the images that make up an example, DreamBooth's instance and class
            for two; `moments` and `context` have them on the second axis.
    """

    def loss(apply, batch, key):
        draw, noise, time = jax.random.split(key, 3)
        joined = batch["moments"].reshape(-1, *batch["moments"].shape[2:])
        mean, deviation = jnp.split(joined, 2, axis=-1)
        x = mean + deviation * jax.random.normal(draw, mean.shape)
        eps = jax.random.normal(noise, x.shape)
        steps = schedule.num_train_timesteps
        t = jax.random.randint(time, x.shape[:1], 0, steps)
        context = batch["context"].reshape(-1, *batch["context"].shape[2:])
        told = conditions(batch, context)
        found = apply(add_noise(schedule, x, eps, t), t, *told)
        errors = jnp.square(found - target(schedule, x, eps, t)).mean((1, 2, 3))
        return errors.reshape(-1, len(weights)) @ jnp.asarray(weights)

    return loss


@functools.cache
def outputs_of(
    schedule: NoiseSchedule, steps: int, guidance: float
) -> Callable[..., dict[str, jax.Array]]:
    """Return the sampler: DDIM, guided away from the empty prompt; it gives latents."""

    def outputs(apply, batch):
        def predict(x, t, told):
            return apply(x, jnp.broadcast_to(t, len(x)), *told)

        told, empty = (conditions(batch, batch[n]) for n in ("context", "empty"))
        network = guided(predict, told, empty, guidance)
        return {"outputs": ddim(network, schedule, batch["noise"], steps=steps)}

    return outputs


def to_draw(
    pipeline: Pipeline, size: int, prompts: Sequence[str], each: int, seed: int
) -> dict[str, Any]:
    """Return a split to evaluate: `each` pictures of each prompt, a label for each."""
    labels = np.repeat(np.arange(len(prompts), dtype=np.int32), each)
    side, channels = size // pipeline.factor, pipeline.unet.config.in_channels
    shape = (len(labels), side, side, channels)
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    texts, (empty,) = contexts(pipeline, prompts), contexts(pipeline, [""])
    return {
        "noise": noise,
        "label": labels,
        "context": Column(lambda rows: texts[labels[rows]], len(labels)),
        "empty": np.broadcast_to(empty, (len(labels), *empty.shape)),
    }


def picture(
    config: Any, labels: np.ndarray, latents: np.ndarray, rows: int = 8
) -> np.ndarray:
    """Return the first pictures of the first prompts, a row for each; uint8."""
    chosen = [np.flatnonzero(labels == i)[:SHOWN] for i in np.unique(labels)[:rows]]
    images = decode(loaded(config), latents[np.concatenate(chosen)])
    ends = np.cumsum([len(row) for row in chosen])[:-1]
    return samples.grid(np.split(images, ends))
