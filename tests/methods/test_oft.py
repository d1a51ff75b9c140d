"""OFT against the torch library."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.oft import OFT
from tests.helpers.goldens import KEY, arrays, check_dense, close, gradients, load

CHECKED = (pj.OFT(block=4),)


def test_torch_library_cayley():
    layer = load("oft_peft_linear_cayley")
    config = json.loads(str(layer["config_json"]))
    assert not config["use_cayley_neumann"]
    method = OFT(block=config["oft_block_size"])
    p = {"r": layer["state.oft_R.weight"]}
    check_dense(method, p, layer)
    close(gradients(method, p, layer)["r"], layer["grad.oft_R.weight"])
    fresh = method.init(KEY, Layer(24, 16))
    close(fresh["r"], layer["init_state.oft_R.weight"])
    assert method.count(Layer(24, 16)) == layer["state.oft_R.weight"].size


def test_cayley_is_a_rotation_and_neumann_nearly_its_inverse():
    p = {"r": 0.02 * arrays((3, 28))[0]}
    cayley = OFT(block=8).rotations(p)
    neumann = OFT(block=8, neumann=True).rotations(p)
    close(cayley @ cayley.transpose(0, 2, 1), jnp.broadcast_to(jnp.eye(8), (3, 8, 8)))
    np.testing.assert_allclose(
        cayley @ neumann, np.broadcast_to(np.eye(8), (3, 8, 8)), atol=1e-4
    )
    upper = jnp.zeros((8, 8)).at[np.triu_indices(8, 1)].set(p["r"][0])
    q = upper - upper.T
    close(cayley[0], (jnp.eye(8) - q) @ jnp.linalg.inv(jnp.eye(8) + q))
    power = np.linalg.matrix_power
    series = np.eye(8) + 2 * (q + power(q, 2) + power(q, 3)) + power(q, 4)
    close(neumann[0], series)


@pytest.mark.parametrize("neumann", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_rotates_blocks_of_the_input(neumann, share):
    method = OFT(block=3, neumann=neumann, share=share)
    p = {"r": arrays(((1 if share else 2), 3))[0]}
    x, kernel, bias = arrays((5, 6), (6, 7), (7,))
    r = method.rotations(p)
    rotation = np.zeros((6, 6))
    for i in range(2):
        rotation[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = r[0 if share else i]
    merged = rotation @ kernel
    layer = {"x": x, "weight": np.asarray(kernel.T), "bias": bias}
    layer |= {"y": x @ merged + bias, "merged_weight": merged.T, "merged_bias": bias}
    check_dense(method, p, layer)
    assert method.count(Layer(6, 7)) == p["r"].size
    assert method.init(KEY, Layer(6, 7))["r"].shape == p["r"].shape


def test_convolution_agrees_with_its_merge():
    model = nn.Conv(5, (3, 3))
    (x,) = arrays((2, 6, 6, 4))
    variables = model.init(KEY, x)
    peft = pj.adapt(model.apply, variables, x, rules={"kernel": OFT(block=6)})
    adapters = {"kernel": {"r": 0.3 * arrays((6, 15))[0]}}
    merged = peft.merge(variables, adapters)
    close(peft.apply(variables, adapters, x), model.apply(merged, x))
    gap = merged["params"]["kernel"] - variables["params"]["kernel"]
    assert jnp.abs(gap).max() > 1e-2


def test_bad_settings():
    with pytest.raises(ValueError, match=r"fc/kernel: OFT\(block=5\).*24.* 4, 6, 3"):
        OFT(block=5).check(Layer(24, 16, path="fc/kernel"))
    with pytest.raises(ValueError, match="block=0"):
        OFT(block=0)
    with pytest.raises(ValueError, match="at least 2"):
        OFT(block=1)
    with pytest.raises(ValueError, match="neumann='exp'"):
        OFT(block=2, neumann="exp")
