"""The autoencoder: the original's outputs and files, the names of the first files."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from peftjax.models import AutoencoderKL, CheckpointError, load, save
from peftjax.models.vae.model import Gaussian
from tests.helpers.model_cases import DATA, edit_config, same_tree

FOLDER = DATA / "diffusion" / "vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def io():
    with np.load(FOLDER / "io.npz") as file:
        return {name: value.transpose(0, 2, 3, 1) for name, value in file.items()}


def test_outputs_are_those_of_the_original(io):
    model, variables = load(FOLDER, dtype=jnp.float32, remat=True)
    assert isinstance(model, AutoencoderKL)

    @jax.jit
    def run(images, latents):
        found = model.apply(variables, images, method="encode")
        return found, model.apply(variables, latents, method="decode")

    latents, images = run(io["images"], io["latents"])
    np.testing.assert_allclose(latents.mean, io["mean"], atol=1e-5)
    np.testing.assert_allclose(latents.log_variance, io["log_variance"], atol=1e-5)
    np.testing.assert_allclose(images, io["decoded"], atol=1e-5)


def test_draws_have_the_moments(io):
    latents = Gaussian(io["mean"], io["log_variance"])
    draws = jax.vmap(latents.sample)(jax.random.split(jax.random.key(0), 4000))
    deviation = np.exp(0.5 * latents.log_variance)
    np.testing.assert_allclose(draws.mean(0), latents.mean, atol=0.1)
    np.testing.assert_allclose(draws.std(0), deviation, rtol=0.1)


def test_files_of_the_original_come_back_bit_by_bit(tmp_path):
    model, variables = load(FOLDER)
    save(tmp_path / "again", model, variables, source=FOLDER)
    same_tree(load_file(FOLDER / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS))
    again, same = load(tmp_path / "again")
    assert again == model
    same_tree(variables, same)


def test_the_first_files_name_attention_otherwise(tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(FOLDER / WEIGHTS).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        tensors[name] = value
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in tensors
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_bytes((FOLDER / "config.json").read_bytes())
    same_tree(load(tmp_path)[1], load(FOLDER)[1])
    edit_config(tmp_path, shift_factor=0.1)
    with pytest.raises(CheckpointError, match="shift_factor: expected None"):
        load(tmp_path)


def test_images_that_do_not_fit_are_refused(io):
    model, variables = load(FOLDER)
    encode = partial(model.apply, variables, method="encode")
    for images in (io["images"][:, :6], io["images"][..., :2], io["images"][0]):
        with pytest.raises(ValueError, match=r"multiples of 4, found"):
            encode(images)
    with pytest.raises(ValueError, match=r"expected latents .* 4\]"):
        model.apply(variables, io["images"], method="decode")
