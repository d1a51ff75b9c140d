"""Learning rates as functions of the step (optax schedules)."""

from __future__ import annotations

import jax.numpy as jnp
import optax


def constant(peak: float) -> optax.Schedule:
    """Return a learning rate that never changes."""
    return optax.constant_schedule(peak)


def warmup_cosine(
    peak: float, steps: int, warmup: int, *, start: float = 0.0, floor: float = 0.0
) -> optax.Schedule:
    """Rise linearly from `start` over `warmup` steps, then fall on a cosine to `floor`.

    Args:
        peak: the learning rate at step `warmup`.
        steps: the length of the run, warm-up included.
        warmup: the length of the rise, below `steps`.
        start: the learning rate at step 0.
        floor: the learning rate from `steps` on.

    >>> [round(float(warmup_cosine(1.0, 10, 2)(step)), 2) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check(steps, warmup)
    return optax.warmup_cosine_decay_schedule(start, peak, warmup, steps, floor)


def warmup_linear(
    peak: float, steps: int, warmup: int, *, start: float = 0.0, floor: float = 0.0
) -> optax.Schedule:
    """Rise linearly as `warmup_cosine` does, then fall linearly to `floor`.

    >>> [round(float(warmup_linear(1.0, 10, 2)(step)), 2) for step in (0, 1, 2, 4, 10)]
    [0.0, 0.5, 1.0, 0.75, 0.0]
    """
    _check(steps, warmup)
    rise = optax.linear_schedule(start, peak, warmup)
    fall = optax.linear_schedule(peak, floor, steps - warmup)
    return optax.join_schedules([rise, fall], [warmup])


def epoch_cosine(
    peak: float,
    steps_per_epoch: int,
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
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch={steps_per_epoch}: expected at least 1")

    def schedule(step):
        epoch = jnp.asarray(step) // steps_per_epoch
        t = jnp.maximum(epoch - 1, 0)
        rise = start + t * ((peak - start) / warmup if warmup else 0.0)
        fall = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * t / period))
        return jnp.where(t < warmup, rise, fall)

    return schedule


def _check(steps: int, warmup: int) -> None:
    if not 0 <= warmup < steps:
        raise ValueError(
            f"warmup={warmup}, steps={steps}: expected 0 <= warmup < steps; warmup is "
            "a number of steps within the run"
        )
