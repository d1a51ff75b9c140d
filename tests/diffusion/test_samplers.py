"""Samplers: the original's trajectories, keys, guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.diffusion import NoiseSchedule, ddim, dpm_solver, guided, timesteps
from tests.diffusion.cases import SETTINGS, recorded


def network(x, t):
    return jnp.tanh(1.3 * x + t / 1000)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("sampler", [ddim, dpm_solver], ids=["ddim", "dpm"])
def test_trajectories_are_those_of_the_original(name, sampler):
    io, kind = recorded(), "ddim" if sampler is ddim else "dpm"
    many = (1, 7, 20)
    run = jax.jit(
        lambda x: [sampler(network, SETTINGS[name], x, steps=steps) for steps in many]
    )
    for steps, found in zip(many, run(io["x"])):
        expected = io[f"{kind}.{name}.{steps}"]
        # Early guesses of x divide by √ᾱ, and so does the original's rounding.
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=3e-5 * scale)


def test_noise_of_a_step_is_drawn_from_the_key():
    io, schedule, key = recorded(), NoiseSchedule(), jax.random.key(3)

    def run(key, steps):
        return ddim(network, schedule, io["x"], steps=steps, eta=1.0, key=key)

    sigma = io["eta.one"] - io["eta.mean"]
    z = jax.random.normal(jax.random.fold_in(key, 0), io["x"].shape)
    np.testing.assert_allclose(run(key, 1), io["eta.mean"] + sigma * z, atol=1e-4)
    many = jax.jit(lambda key: run(key, 9))
    np.testing.assert_array_equal(many(key), many(key))
    assert not np.array_equal(many(key), many(jax.random.key(4)))
    with pytest.raises(ValueError, match=r"eta 1\.0 needs a key"):
        run(None, 1)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
def test_more_steps_are_refused_than_there_are_times(sampler):
    x = jnp.ones((1, 2))
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match="steps: expected 1 to"):
            sampler(network, NoiseSchedule(), x, steps=steps)
    with pytest.raises(ValueError, match="reach time 1000 of 1000"):
        timesteps(NoiseSchedule(), 1000)


def test_guidance_joins_both_outputs():
    x, c = jnp.full((2, 3), 0.5), {"text": jnp.asarray([[1.0], [2.0]])}
    empty = jax.tree.map(jnp.zeros_like, c)

    def conditioned(x, t, c):
        return network(x * (1 + c["text"]), t)

    t = jnp.int32(7)
    with_it, without = conditioned(x, t, c), conditioned(x, t, empty)
    for scale in (0.0, 1.0, 7.5):
        expected = without + scale * (with_it - without)
        found = guided(conditioned, c, empty, scale)(x, t)
        np.testing.assert_allclose(found, expected, atol=1e-6)
