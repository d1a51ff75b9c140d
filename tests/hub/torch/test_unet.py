"""Adapters of a U-Net: the torch library's files both ways, and the merged model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import peftjax as pj
from peftjax.diffusion import NoiseSchedule, add_noise
from peftjax.hub import load_torch, save_merged, save_torch
from peftjax.models import load
from peftjax.presets import rules
from tests.helpers.model_cases import DATA
from tests.helpers.torch_cases import TENSORS

pytestmark = pytest.mark.slow

BASE = DATA / "diffusion" / "unet_sd15"
READ = DATA / "unet_adapters"


@pytest.fixture(scope="module")
def base():
    """Return model, variables and the inputs of the record."""
    model, variables = load(BASE, dtype="float32")
    with np.load(BASE / "io.npz") as io:
        sample = io["sample"].transpose(0, 2, 3, 1)
        return model, variables, (sample, io["timestep"], io["context"])


@pytest.mark.parametrize("name", ["lora_conv", "hra"])
def test_adapters_of_the_torch_library_compute_the_same_here(base, tmp_path, name):
    model, variables, given = base
    chosen, adapters = load_torch(READ / name, model, variables)
    peft = pj.adapt(model.apply, variables, *given, rules=chosen)
    with np.load(READ / name / "io.npz") as file:
        io = dict(file)
    expected = io["adapted"].transpose(0, 2, 3, 1)
    assert sum(site.trainable for site in peft.sites) == io["n_trainable"]
    found = jax.jit(peft.apply)(variables, adapters, *given)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    save_torch(tmp_path / "new", model, peft, adapters)
    tensors, original = (
        load_file(path / TENSORS) for path in (tmp_path / "new", READ / name)
    )
    assert tensors.keys() == original.keys()
    for key in tensors:
        np.testing.assert_array_equal(tensors[key], original[key])
    if name != "lora_conv":
        method = next(iter(chosen.values()))
        placed = pj.adapt(model.apply, variables, *given, rules=rules("unet", method))
        assert {site.path for site in placed.sites} == adapters.keys()


def test_a_merged_model_is_written_as_the_original_has_it(base, tmp_path):
    model, variables, given = base
    chosen, adapters = load_torch(READ / "hra", model, variables)
    peft = pj.adapt(model.apply, variables, *given, rules=chosen)
    save_merged(tmp_path / "new", model, peft, variables, adapters, source=BASE)
    again, merged = load(tmp_path / "new")
    assert again == model
    with np.load(READ / "hra" / "io.npz") as io:
        expected = io["merged"].transpose(0, 2, 3, 1)
    found = jax.jit(model.apply)(merged, *given)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["lora", "hra"])
def test_twenty_steps_of_training_are_those_of_the_torch_library(base, name):
    model, variables, (sample, _, context) = base
    chosen, adapters = load_torch(READ / name, model, variables)
    example = (sample, jnp.zeros(len(sample), jnp.int32), context)
    peft = pj.adapt(model.apply, variables, *example, rules=chosen)
    with np.load(READ / name / "curve.npz") as file:
        curve = dict(file)
    trainable, frozen = peft.partition(adapters)
    descent = optax.adamw(float(curve["lr"]), weight_decay=float(curve["weight_decay"]))

    def step(carry, given):
        adapters, state = carry
        noise, t = given

        def loss(adapters):
            x = add_noise(NoiseSchedule(), sample, noise, t)
            both = peft.combine(adapters, frozen)
            found = peft.apply(variables, both, x, t, context)
            return jnp.square(found - noise).mean()

        value, gradient = jax.value_and_grad(loss)(adapters)
        updates, state = descent.update(gradient, state, adapters)
        return (optax.apply_updates(adapters, updates), state), value

    @jax.jit
    def run(adapters, noise, times):
        return jax.lax.scan(step, (adapters, descent.init(adapters)), (noise, times))

    noise = curve["noise"].transpose(0, 1, 3, 4, 2)
    _, losses = run(trainable, noise, curve["times"])
    np.testing.assert_allclose(losses, curve["losses"], atol=1e-4)
