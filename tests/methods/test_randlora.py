"""RandLoRA against the torch library, on layers wider in and out."""

import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from tests.helpers.goldens import KEY, random_like
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.RandLoRA(rank=4, alpha=6.0, d_in=72, d_out=32),)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("randlora", pj.RandLoRA(rank=3, alpha=5.0, d_in=16, d_out=24)),
        ("randlora_up", pj.RandLoRA(rank=4, alpha=5.0, d_in=16, d_out=24)),
    ],
)
def test_torch_library(name, method):
    case = check_torch_layer(name)
    assert case.method == method


def test_the_delta_has_full_rank():
    method, layer = pj.RandLoRA(rank=3, alpha=3.0), pj.Layer(8, 10)
    p = dict(method.init(KEY, layer))
    p |= random_like({name: p[name] for name in ("coefficients", "gamma")})
    delta = method(p, jnp.eye(8), jnp.zeros((8, 10)))
    assert np.linalg.matrix_rank(delta) == 8


def test_a_layer_above_the_largest_is_refused():
    with pytest.raises(ValueError, match="too few for a .8, 40. weight"):
        pj.RandLoRA(2, alpha=1.0, d_in=8, d_out=32).check(pj.Layer(8, 40))
