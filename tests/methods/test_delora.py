"""DeLoRA against the torch library, and the bound on its delta."""

import jax.numpy as jnp
import numpy as np

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.DeLoRA(rank=3, alpha=2.0),)


def test_torch_library():
    case = check_torch_layer("delora")
    assert case.method == pj.DeLoRA(rank=3, alpha=5.0)


def test_the_delta_is_at_most_the_strength():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(100 * rng.normal(size=s)) for s in ((6, 3), (3, 5)))
    p = {"a": a, "b": b, "strength": jnp.array(0.5), "norm": jnp.ones(6)}
    delta = pj.DeLoRA(rank=3, alpha=1.0)(p, jnp.eye(6), jnp.zeros((6, 5)))
    assert 0.1 < np.linalg.norm(delta) <= 0.5
