"""From noise to samples: DDIM, DPM-Solver++, and guidance without a classifier.

Samplers are pure: one `lax.scan` over the steps, all that the schedule decides computed
before. Put them under `jax.jit` together with the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.diffusion.schedule import NoiseSchedule, predicted

# (x_t, t) -> the network's output; t is an int32 scalar.
Predict = Callable[[jax.Array, jax.Array], jax.Array]


def timesteps(schedule: NoiseSchedule, steps: int, *, ends: bool = True) -> np.ndarray:
    """Return the times at which a sampler asks the network, the noisiest first.

    Args:
        schedule: the process, with its `timestep_spacing`.
        steps: how many.
        ends: DDIM's spacing; without, DPM-Solver's, which leaves out time 0 where one
            more step would have reached it.

    Returns:
        int32 `[steps]`.

    Raises:
        ValueError: there are not so many times.

    >>> timesteps(NoiseSchedule(), 4)
    array([751, 501, 251,   1], dtype=int32)
    """
    total, more = schedule.num_train_timesteps, steps + (not ends)
    if not 1 <= steps or more > total:
        raise ValueError(f"steps: expected 1 to {total - (not ends)}, found {steps}")
    if schedule.timestep_spacing == "trailing":
        times = np.round(np.arange(total, 0, -total / steps))[:steps] - 1
    elif schedule.timestep_spacing == "leading":
        times = np.arange(more)[::-1][:steps] * (total // more) + schedule.steps_offset
    else:
        times = np.linspace(0, total - 1, more).round()[::-1][:steps]
    if times[0] >= total:
        raise ValueError(
            f"steps: {steps} steps and steps_offset {schedule.steps_offset} reach time "
            f"{int(times[0])} of {total}; take fewer"
        )
    return times.astype(np.int32)


def ddim(
    predict: Predict,
    schedule: NoiseSchedule,
    x: jax.Array,
    *,
    steps: int,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Return samples by DDIM (Song et al., arXiv 2010.02502, equations 12 and 16).

    Args:
        predict: the network, `(x_t, t) -> output`.
        schedule: the process.
        x: `[batch, ...]`, standard normal.
        steps: how often the network is asked.
        eta: 0: without noise; 1: DDPM's own steps.
        key: draws the noise; needed where `eta` is not 0.

    Returns:
        float32, of the shape of x.

    Raises:
        ValueError: noise without a key, or there are not so many times.

    >>> x = jax.random.normal(jax.random.key(0), (2, 4))
    >>> ddim(lambda x, t: x, NoiseSchedule(), x, steps=5).shape
    (2, 4)
    """
    if eta and key is None:
        raise ValueError(f"ddim: eta {eta} needs a key")
    times = timesteps(schedule, steps)
    alphas = schedule.alphas_cumprod
    before = times - schedule.num_train_timesteps // steps
    last = 1.0 if schedule.set_alpha_to_one else alphas[0]
    now, then = alphas[times], np.where(before >= 0, alphas[before.clip(0)], last)
    # σ_t of equation 16.
    sigma = eta * np.sqrt((1 - then) / (1 - now) * np.maximum(1 - now / then, 0))
    # Rounding may leave less than nothing where η = 1.
    direction = np.sqrt(np.maximum(1 - then - sigma**2, 0))

    def step(x: jax.Array, each: Any) -> tuple[jax.Array, None]:
        t, signal, direction, sigma, i = each
        clean, noise = predicted(schedule, predict(x, t), x, t)
        if schedule.clip_sample:
            clean = clean.clip(-1.0, 1.0)
        x = signal * clean + direction * noise
        if key is not None and eta:
            fresh = jax.random.normal(jax.random.fold_in(key, i), x.shape)
            x = x + sigma * fresh
        return x, None

    floats = (np.float32(each) for each in (np.sqrt(then), direction, sigma))
    each = (times, *floats, np.arange(steps))
    return jax.lax.scan(step, x.astype(jnp.float32), each)[0]


def dpm_solver(
    predict: Predict, schedule: NoiseSchedule, x: jax.Array, *, steps: int
) -> jax.Array:
    """Return samples by DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2).

    The last step goes to no noise at all, which only the first order can do.

    Args:
        predict: the network, `(x_t, t) -> output`.
        schedule: the process; `clip_sample` and `set_alpha_to_one` have no part here.
        x: `[batch, ...]`, standard normal.
        steps: how often the network is asked.

    Returns:
        float32, of the shape of x.

    Raises:
        ValueError: there are not so many times.
    """
    times = timesteps(schedule, steps, ends=False)
    squared = np.append(schedule.alphas_cumprod[times], 1.0)
    alpha, sigma = np.sqrt(squared), np.sqrt(1 - squared)
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(alpha) - np.log(sigma))  # λ_t - λ_s, infinite at the end
    keep, move = sigma[1:] / sigma[:-1], alpha[1:] * -np.expm1(-h)
    # 1 / (2 r); first order at the ends, where one guess is known, or h is infinite.
    ratio = np.zeros(steps)
    ratio[1:-1] = 0.5 * h[1:-1] / h[:-2]

    def step(carry: Any, each: Any) -> tuple[Any, None]:
        x, earlier = carry
        t, keep, move, ratio = each
        clean, _ = predicted(schedule, predict(x, t), x, t)
        guess = clean + ratio * (clean - earlier)
        return (keep * x + move * guess, clean), None

    x = x.astype(jnp.float32)
    each = (times, *(np.float32(each) for each in (keep, move, ratio)))
    return jax.lax.scan(step, (x, jnp.zeros_like(x)), each)[0][0]


def guided(
    predict: Callable[[jax.Array, jax.Array, Any], jax.Array],
    context: Any,
    unconditional: Any,
    scale: float | jax.Array,
) -> Predict:
    """Return a network guided without a classifier (Ho & Salimans, arXiv 2207.12598).

    `ε = ε(∅) + scale (ε(c) - ε(∅))`, both from one call on a batch twice as large. So
    scale 1 is the network with its condition alone, `1 + w` of the paper.

    Args:
        predict: the network, `(x_t, t, context) -> output`.
        context: a tree of arrays `[batch, ...]`, the condition.
        unconditional: the same of the empty one.
        scale: how much of the condition.

    >>> network = lambda x, t, c: x + c
    >>> x, c = jnp.ones((1, 2)), jnp.ones((1, 1))
    >>> guided(network, c, 0 * c, 3.0)(x, jnp.int32(0))
    Array([[4., 4.]], dtype=float32)
    """

    def both(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.concatenate([first, second])

    contexts = jax.tree.map(both, unconditional, context)

    def predict_guided(x: jax.Array, t: jax.Array) -> jax.Array:
        output = predict(both(x, x), t, contexts)
        without, with_it = jnp.split(output, 2)
        return without + scale * (with_it - without)

    return predict_guided
