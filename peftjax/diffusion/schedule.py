"""How noise is added: DDPM's process, and what a network is trained to predict.

Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239:
`x_t = √ᾱ_t x + √(1 - ᾱ_t) ε`. The network predicts ε, or the velocity
`v = √ᾱ_t ε - √(1 - ᾱ_t) x` of Salimans & Ho, arXiv 2202.00512.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from peftjax.models.files import CheckpointError, read_json
from peftjax.storage import path as storage_path

Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction"]
Spacing = Literal["leading", "trailing", "linspace"]
_CHOICES = {
    "beta_schedule": get_args(Betas),
    "prediction_type": get_args(Prediction),
    "timestep_spacing": get_args(Spacing),
}


@dataclass(frozen=True)
class NoiseSchedule:
    """The process of noise, in the names of the original's `scheduler_config.json`.

    The defaults are those of Stable Diffusion 1.5.

    Attributes:
        num_train_timesteps: number of times t, from 0.
        beta_start: β of the first.
        beta_end: β of the last.
        beta_schedule: β grows linearly, its root does (`"scaled_linear"`), or ᾱ falls
            as a squared cosine, which asks for neither end (arXiv 2102.09672).
        prediction_type: what the network predicts.
        timestep_spacing: at which times a sampler with few steps looks (arXiv
            2305.08891, Table 2).
        steps_offset: added to `"leading"` times.
        set_alpha_to_one: DDIM's last step ends at ᾱ = 1, not at the first time's ᾱ.
        clip_sample: DDIM keeps its guess of x in [-1, 1]; for images, not latents.

    Raises:
        ValueError: a field is out of range.

    >>> NoiseSchedule().alphas_cumprod.shape
    (1000,)
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Betas = "scaled_linear"
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (found := getattr(self, name)) not in known:
                raise ValueError(f"{name}: expected one of {known}, found {found!r}")
        if not 1 <= self.num_train_timesteps <= 10**6:
            raise ValueError(
                f"num_train_timesteps: expected 1 to 1000000, found "
                f"{self.num_train_timesteps}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                "expected 0 < beta_start <= beta_end < 1, found "
                f"{self.beta_start} and {self.beta_end}"
            )
        if not 0 <= self.steps_offset < self.num_train_timesteps:
            raise ValueError(
                f"steps_offset: expected 0 to {self.num_train_timesteps - 1}, found "
                f"{self.steps_offset}"
            )

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ_t of every time, float64 `[num_train_timesteps]`."""
        count, first, last = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.beta_schedule == "linear":
            betas = np.linspace(first, last, count)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(first**0.5, last**0.5, count) ** 2
        else:
            angle = (np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2
            levels = np.cos(angle) ** 2
            betas = np.minimum(1 - levels[1:] / levels[:-1], 0.999)
        return np.cumprod(1 - betas)


# What files do not have. The class that wrote them decides.
_ABSENT: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "DDPMScheduler": {"clip_sample": True, "set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace"},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
    "PNDMScheduler": {},
}
_DEFAULTS: dict[str, Any] = {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "steps_offset": 0,
}
# What is not computed here, and the values with which it is not asked for.
_ONLY: dict[str, tuple[Any, ...]] = {
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "trained_betas": (None,),
    "use_karras_sigmas": (False, None),
    "clip_sample_range": (1.0,),
}


def read_schedule(folder: str | os.PathLike[str]) -> NoiseSchedule:
    """Return the process that the `scheduler_config.json` of a folder describes.

    Any sampler may then be used with it, whichever class wrote the file.

    Args:
        folder: `scheduler/` of a pipeline in the Hugging Face layout.

    Raises:
        CheckpointError: the file is absent or damaged, of a class that is not known, or
            asks for what is not computed here, such as another prediction type.
    """
    path = storage_path(folder) / "scheduler_config.json"
    config = read_json(path)
    name = config.get("_class_name")
    if name not in _ABSENT:
        raise CheckpointError(
            f"{path}: _class_name: expected one of {', '.join(_ABSENT)}, found {name!r}"
        )
    for entry, only in {**_ONLY, **_CHOICES}.items():
        if config.get(entry, only[0]) not in only:
            known = " or ".join(map(repr, only))
            raise CheckpointError(
                f"{path}: {entry}: expected {known}, all that is computed here, "
                f"found {config[entry]!r}"
            )
    try:
        given = {**_DEFAULTS, **_ABSENT[str(name)], **config}
        return msgspec.convert(given, NoiseSchedule)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from error


def levels(
    schedule: NoiseSchedule, t: jax.Array, like: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return √ᾱ_t and √(1 - ᾱ_t), to be broadcast against `like`.

    Args:
        schedule: the process.
        t: integers, one time or one for each row.
        like: `[batch, ...]`.
    """
    alphas = schedule.alphas_cumprod
    shape = t.shape + (1,) * (like.ndim - 1) if t.ndim else ()
    signal, noise = (
        jnp.asarray(table, jnp.float32)[t].reshape(shape)
        for table in (np.sqrt(alphas), np.sqrt(1 - alphas))
    )
    return signal, noise


def add_noise(
    schedule: NoiseSchedule, x: jax.Array, noise: jax.Array, t: jax.Array
) -> jax.Array:
    """Return `x_t = √ᾱ_t x + √(1 - ᾱ_t) ε` (arXiv 2006.11239, equation 4).

    Args:
        schedule: the process.
        x: `[batch, ...]`, clean.
        noise: ε, standard normal, of the shape of x.
        t: integers `[batch]`, or one for all.

    Returns:
        float32, of the shape of x.
    """
    a, b = levels(schedule, t, x)
    return a * x + b * noise


def target(
    schedule: NoiseSchedule, x: jax.Array, noise: jax.Array, t: jax.Array
) -> jax.Array:
    """Return what the network should predict at `add_noise(schedule, x, noise, t)`."""
    if schedule.prediction_type == "epsilon":
        return noise
    a, b = levels(schedule, t, x)
    return a * noise - b * x


def predicted(
    schedule: NoiseSchedule, output: jax.Array, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the guesses of x and ε that a network's output means; float32."""
    a, b = levels(schedule, t, x_t)
    if schedule.prediction_type == "epsilon":
        return (x_t - b * output) / a, jnp.asarray(output, jnp.float32)
    return a * x_t - b * output, a * output + b * x_t


def noised(
    schedule: NoiseSchedule, x: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return an example of the training objective for each row.

    Args:
        schedule: the process.
        x: `[batch, ...]`, clean.
        key: draws times and noise.

    Returns:
        `x_t`, t as int32 `[batch]`, uniform, and the target.

    >>> x_t, t, y = noised(NoiseSchedule(), jnp.ones((2, 4, 4, 1)), jax.random.key(0))
    >>> x_t.shape, t.shape, y.shape
    ((2, 4, 4, 1), (2,), (2, 4, 4, 1))
    """
    times, draws = jax.random.split(key)
    t = jax.random.randint(times, x.shape[:1], 0, schedule.num_train_timesteps)
    noise = jax.random.normal(draws, x.shape)
    return add_noise(schedule, x, noise, t), t, target(schedule, x, noise, t)
