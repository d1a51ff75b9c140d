"""RepAdapter against the authors' code, adapted and merged."""

import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Layer
from tests.helpers.goldens import KEY, check_dense, close, gradients, load

CHECKED = (pj.RepAdapter(rank=4, scale=2.0, dropout=0.1),)
METHOD = pj.RepAdapter(rank=4, scale=0.7)


def ours(layer, prefix=""):
    """Return the arrays of the two convolutions by our names."""
    names = ("conv_A.weight", "conv_A.bias", "conv_B.weight", "conv_B.bias")
    a, a_bias, b, b_bias = (layer[prefix + name] for name in names)
    b = b[..., 0].reshape(2, 6, 2).transpose(0, 2, 1)
    return {"a": a[..., 0].T, "a_bias": a_bias, "b": b, "b_bias": b_bias}


def test_authors_code():
    layer = load("repadapter_official")
    p = ours(layer)
    check_dense(METHOD, p, layer)
    found, expected = gradients(METHOD, p, layer), ours(layer, "grad.")
    for name in p:
        close(found[name], expected[name])
    assert METHOD.count(Layer(12, 10)) == sum(value.size for value in p.values())


def test_starts():
    theirs = ours(load("repadapter_official"), "start.")
    fresh = METHOD.init(KEY, Layer(12, 10))
    for name, value in theirs.items():
        assert fresh[name].shape == value.shape
        assert (value == 0).all() == (name != "a") == (not fresh[name].any())
    wide = METHOD.init(KEY, Layer(600, 10))["a"]
    assert 0.97 < np.abs(wide).max() / (6 / 604) ** 0.5 <= 1
    assert np.abs(theirs["a"]).max() <= (6 / 16) ** 0.5


def test_groups_must_divide():
    with pytest.raises(ValueError, match="a rank that groups divides"):
        pj.RepAdapter(rank=3)
    with pytest.raises(ValueError, match="does not divide the layer's input, 9"):
        pj.RepAdapter(rank=2).check(Layer(9, 8))
