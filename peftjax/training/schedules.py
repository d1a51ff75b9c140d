"""Learning rates as functions of the step (optax schedules)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

Scalar = float | jax.Array


def check_rate(name: str, rate: Any) -> None:
    """Raise ValueError for a learning rate that trains nothing, or backwards.

    Arrays and functions of the step pass: their values are not known before the step.
    """
    if isinstance(rate, int | float) and not 0 < rate < math.inf:
        raise ValueError(f"{name}={rate}: expected a finite number above 0")


def constant(peak: Scalar) -> optax.Schedule:
    """Return a learning rate that never changes.

    Raises:
        ValueError: the rate is not above 0, or not finite; so do the others.
    """
    check_rate("peak", peak)
    return optax.constant_schedule(peak)


def warmup_cosine(
    peak: Scalar,
    steps: Scalar,
    warmup: Scalar,
    *,
    start: float = 0.0,
    floor: float = 0.0,
) -> optax.Schedule:
    """Rise linearly from `start` over `warmup` steps, then fall on a cosine to `floor`.

    Peak, steps and warm-up may be arrays, also under `jit`, so that one compiled update
    serves runs of any length; optax's own schedules take numbers only.

    Args:
        peak: the learning rate at step `warmup`.
        steps: the length of the run, warm-up included.
        warmup: the length of the rise, below `steps`.
        start: the learning rate at step 0.
        floor: the learning rate from `steps` on.

    Raises:
        ValueError: among numbers, a peak that is not above 0 and finite, or a warm-up
            as long as the run.

    >>> [round(float(warmup_cosine(1.0, 10, 2)(step)), 2) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return _warmup(peak, steps, warmup, start, floor, _half_cosine)


def warmup_linear(
    peak: Scalar,
    steps: Scalar,
    warmup: Scalar,
    *,
    start: float = 0.0,
    floor: float = 0.0,
) -> optax.Schedule:
    """Rise linearly as `warmup_cosine` does, then fall linearly to `floor`.

    >>> [round(float(warmup_linear(1.0, 10, 2)(step)), 2) for step in (0, 1, 2, 4, 10)]
    [0.0, 0.5, 1.0, 0.75, 0.0]
    """
    return _warmup(peak, steps, warmup, start, floor, lambda done: 1 - done)


def epoch_cosine(
    peak: Scalar,
    steps_per_epoch: Scalar,
    *,
    period: int = 500,
    warmup: int = 10,
    start: float = 1e-6,
    floor: float = 1e-5,
) -> optax.Schedule:
    """Warm up and follow a cosine by epochs, the rate constant within each epoch.

    This is what the code of Hydra (arXiv 2309.06922) and of GLoRA (arXiv 2306.07967)
    runs on VTAB-1k. Their scheduler is stepped after each epoch with the number of the
    epoch that ended, so with `t = max(epoch - 1, 0)`, in epochs,

        rate = start + t (peak - start) / warmup                         if t < warmup
               floor + (peak - floor) (1 + cos(pi t / period)) / 2       otherwise

    and epochs 0 and 1 both run at `start`. Hydra keeps the period of 500 epochs in a
    run of 100, which ends at 0.91 of the peak.

    Args:
        peak: the largest rate of the cosine.
        steps_per_epoch: updates per epoch.
        period: epochs from the cosine's top to its floor.
        warmup: epochs of the linear rise.
        start: the rate of epochs 0 and 1.
        floor: the rate at the end of the period.
    """
    check_rate("peak", peak)
    lengths = {"steps_per_epoch": steps_per_epoch, "period": period}
    for name, length in lengths.items():
        if isinstance(length, int | float) and not length >= 1:
            raise ValueError(f"{name}={length}: expected at least 1")

    def schedule(step):
        epoch = jnp.asarray(step) // steps_per_epoch
        t = jnp.maximum(epoch - 1, 0)
        rise = start + t * (peak - start) / jnp.maximum(warmup, 1)
        fall = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * t / period))
        return jnp.where(t < warmup, rise, fall)

    return schedule


def _half_cosine(done: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.cos(jnp.pi * done))


def _warmup(peak, steps, warmup, start, floor, decay) -> optax.Schedule:
    check_rate("peak", peak)
    numbers = isinstance(steps, int | float) and isinstance(warmup, int | float)
    if numbers and not 0 <= warmup < steps < math.inf:
        raise ValueError(
            f"warmup={warmup}, steps={steps}: expected 0 <= warmup < steps; warmup is "
            "a number of steps within the run"
        )

    def schedule(step):
        rise = start + (peak - start) * step / jnp.maximum(warmup, 1)
        done = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
        return jnp.where(step < warmup, rise, floor + (peak - floor) * decay(done))

    return schedule
