"""OLoRA's factors; values and files are compared beside PiSSA's."""

import jax.numpy as jnp

import peftjax as pj
from peftjax.core.method import Layer
from tests.helpers.goldens import KEY, arrays, close

CHECKED = (pj.OLoRA(rank=4, alpha=6.0),)


def test_the_whole_rank_is_the_weight():
    (kernel,) = arrays((6, 4))
    p = pj.OLoRA(4, alpha=4.0).init(KEY, Layer(6, 4, kernel=kernel))
    close(p["a"] @ p["b"], kernel)
    close(p["b"] @ p["b"].T, jnp.eye(4))
