"""(IA)³ against the torch library."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.ia3 import IA3
from tests.helpers.goldens import KEY, arrays, check_dense, close, gradients, load

CHECKED = (pj.IA3(side="input"),)


def test_torch_library_input_side():
    layer = load("ia3_peft_linear_ff")
    method = IA3(side="input")
    p = {"scale": layer["state.ia3_l"][0]}
    check_dense(method, p, layer)
    close(gradients(method, p, layer)["scale"], layer["grad.ia3_l"][0])
    fresh = method.init(KEY, Layer(24, 16))
    close(fresh["scale"], layer["init_state.ia3_l"][0])
    assert method.count(Layer(24, 16)) == 24 == fresh["scale"].size


def test_output_side_scales_the_bias_too():
    method = IA3()
    x, kernel, bias, scale = arrays((5, 9), (9, 7), (7,), (7,))
    y = (x @ kernel + bias) * scale
    layer = {"x": x, "weight": np.asarray(kernel.T), "bias": bias, "y": y}
    layer |= {"merged_weight": (kernel * scale).T, "merged_bias": bias * scale}
    check_dense(method, {"scale": scale}, layer)
    assert method.uses_bias and method.count(Layer(9, 7)) == 7


def test_a_convolution_has_one_factor_for_each_input_channel():
    model = nn.Conv(5, (3, 2))
    (x,) = arrays((2, 6, 6, 4))
    variables = model.init(KEY, x)
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": IA3(side="input")})
    scale = jnp.arange(1.0, 5.0)
    assert peft.init(KEY)["kernel"]["scale"].shape == (4,)
    adapters = {"kernel": {"scale": scale}}
    close(peft.apply(variables, adapters, x), model.apply(variables, x * scale))
    merged = peft.merge(variables, adapters)
    close(merged["params"]["kernel"], variables["params"]["kernel"] * scale[:, None])


def test_bad_side():
    with pytest.raises(ValueError, match="'output', 'input'"):
        IA3(side="left")
