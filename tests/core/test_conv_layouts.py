"""A convolution's rows run over (kh, kw, c_in) in every layout of its kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import peftjax as pj
from peftjax.methods import ALL
from peftjax.testing import error, perturb
from tests.methods.test_every_method import checked

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 5, 4)), "float32")
K = jnp.asarray(RNG.normal(size=(3, 2, 4, 6)), "float32")
LAYOUTS = ["HWIO", "HWOI", "OHWI", "OIHW", "IHWO", "IOHW"]
METHODS = [m for method in ALL for m in checked(method)[:1] if "conv" in m.kinds]
METHODS = [method for method in METHODS if not method.replaces]


def convolution(layout):
    """Return a model and its kernel in a layout."""

    def apply_fn(v, x):
        dims = ("NHWC", layout, "NHWC")
        return lax.conv_general_dilated(x, v["k"], (1, 1), "SAME", None, None, dims)

    return apply_fn, {"k": jnp.transpose(K, ["HWIO".index(c) for c in layout])}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ia3_scales_the_input_channels(layout):
    apply_fn, v = convolution(layout)
    peft = pj.adapt(apply_fn, v, X, rules={"k": pj.IA3(side="input")})
    a = {"k": {"scale": jnp.array([1.0, 2.0, 3.0, 4.0])}}
    expected = apply_fn(v, X * a["k"]["scale"])
    assert error(peft.apply(v, a, X), expected) < 1e-6
    assert error(apply_fn(peft.merge(v, a), X), expected) < 1e-6


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_one_adapter_means_the_same_in_every_layout(method):
    (apply_fn, v), (other, w) = convolution("HWIO"), convolution("OIHW")
    first = pj.adapt(apply_fn, v, X, rules={"k": method})
    second = pj.adapt(other, w, X, rules={"k": method})
    a = perturb(first, first.init(jax.random.key(0)), 0.1)
    both = jax.jit(lambda v, w, a: (first.apply(v, a, X), second.apply(w, a, X)))
    assert error(*both(v, w, a)) < 1e-5
