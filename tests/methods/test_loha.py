"""LoHa against the torch library, by both of its ways."""

import pytest

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.LoHa(rank=2, alpha=3.0),)


@pytest.mark.parametrize("name", ["loha", "loha_wide"])  # formed, and as a product
def test_torch_library(name):
    case = check_torch_layer(name)
    assert case.method == pj.LoHa(rank=2, alpha=5.0)
    product = 3 * 2**2 * (case.layer.d_in + case.layer.d_out)
    assert (product <= case.layer.d_in * case.layer.d_out) == (name == "loha_wide")
