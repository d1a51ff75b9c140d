"""The signal encoder: ControlNet's, zero at the start, added to the first layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.models import ControlledUNet, SignalEncoder, UNet2DConditionModel
from tests.helpers.model_cases import DATA
from tests.helpers.pipeline_case import UNET


def test_the_encoder_is_that_of_the_original():
    with np.load(DATA / "signal_encoder.npz") as file:
        io = dict(file)
    image, output = (io.pop(n).transpose(0, 2, 3, 1) for n in ("image", "output"))
    params = {}
    for name, value in io.items():
        path, leaf = name.replace("blocks.", "blocks_").split(".")
        kernel = leaf == "weight"
        value = value.transpose(2, 3, 1, 0) if kernel else value
        params.setdefault(path, {})["kernel" if kernel else "bias"] = value
    model = SignalEncoder(8, (4, 6, 8))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_allclose(
        jax.jit(model.apply)({"params": params}, image), output, atol=1e-5
    )


def test_it_starts_as_nothing_and_is_added_to_the_first_convolution():
    rng = np.random.default_rng(0)
    x, context = rng.normal(size=(2, 4, 4, 4)), rng.normal(size=(2, 3, 8))
    image, t = jnp.ones((2, 8, 8, 3)), jnp.array([3, 700])
    given = jnp.float32(x), t, jnp.float32(context)
    model = ControlledUNet(UNET, (4, 8))
    variables = jax.jit(model.init)(jax.random.key(0), *given, image)
    params = variables["params"]
    alone, whole = (jax.jit(m.apply) for m in (UNet2DConditionModel(UNET), model))
    expected = alone({"params": params["unet"]}, *given)
    np.testing.assert_allclose(whole(variables, *given, image), expected, atol=1e-6)
    # A constant signal is a bias of the first convolution.
    bias = jnp.arange(8.0) / 8
    params["signal"]["conv_out"]["bias"] = bias
    moved = whole(variables, *given, image)
    params["unet"]["conv_in"]["bias"] += bias
    expected = alone({"params": params["unet"]}, *given)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"signal \[2, 4, 4, 8\], found \[2, 8, 8, 8"):
        jax.eval_shape(model.clone(widths=(4,)).init, jax.random.key(0), *given, image)
