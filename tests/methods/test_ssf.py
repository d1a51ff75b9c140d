"""SSF: scale and shift."""

import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from peftjax.methods.ssf import SSF
from tests.helpers.goldens import KEY, arrays, check_dense

CHECKED = (pj.SSF(),)


def test_scales_and_shifts_the_output():
    x, kernel, bias, scale, shift = arrays((5, 9), (9, 7), (7,), (7,), (7,))
    y = scale * (x @ kernel + bias) + shift
    layer = {"x": x, "weight": np.asarray(kernel.T), "bias": bias, "y": y}
    merged = {"merged_weight": (kernel * scale).T, "merged_bias": bias * scale + shift}
    check_dense(SSF(), {"scale": scale, "shift": shift}, {**layer, **merged})
    assert SSF().uses_bias and SSF().count(Layer(9, 7)) == 14


def test_starts():
    x, kernel, bias = arrays((5, 9), (9, 7), (7,))
    plain, noisy = SSF(), SSF(std=0.02)
    p = plain.init(KEY, Layer(9, 7))
    assert plain.at_init == "exact" and noisy.at_init == "none"
    assert (plain(p, x, kernel, bias) == x @ kernel + bias).all()
    drawn = noisy.init(KEY, Layer(9, 4000))
    for value, mean in ((drawn["scale"], 1), (drawn["shift"], 0)):
        assert abs(float(value.mean()) - mean) < 2e-3
        assert abs(float(jnp.std(value)) - 0.02) < 2e-3
    with pytest.raises(ValueError, match="std"):
        SSF(std=-1.0)
