"""`Full`: a trainable copy in the leaf's own shape."""

import flax.linen as nn
import numpy as np

import peftjax as pj
from tests.helpers.goldens import KEY, arrays, random_like

CHECKED = (pj.Full(),)


def test_the_leaf_is_replaced():
    (x,) = arrays((2, 6, 6, 3))
    model = nn.Conv(4, (3, 3))
    variables = model.init(KEY, x)
    peft = pj.adapt(model.apply, variables, x, rules={".*": pj.Full()})
    adapters = peft.init(KEY)
    params = variables["params"]
    for path in ("kernel", "bias"):
        np.testing.assert_array_equal(adapters[path]["value"], params[path])
    moved = random_like(adapters)
    merged = peft.merge(variables, moved)
    for path in ("kernel", "bias"):
        np.testing.assert_array_equal(merged["params"][path], moved[path]["value"])
    expected = model.apply(merged, x)
    np.testing.assert_array_equal(peft.apply(variables, moved, x), expected)
    assert sum(site.trainable for site in peft.sites) == 3 * 3 * 3 * 4 + 4


def test_the_direct_call_uses_the_copy():
    x, kernel, value = arrays((2, 3), (3, 4), (3, 4))
    np.testing.assert_array_equal(pj.Full()({"value": value}, x, kernel), x @ value)
