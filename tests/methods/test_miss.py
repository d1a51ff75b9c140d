"""MiSS against the torch library, with and without a shorter last stretch."""

import pytest

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.MiSS(rank=3),)


@pytest.mark.parametrize(("name", "rank"), [("miss", 4), ("miss_rest", 7)])
def test_torch_library(name, rank):
    assert check_torch_layer(name).method == pj.MiSS(rank)


def test_a_rank_above_the_input_is_refused():
    with pytest.raises(ValueError, match="at most the layer's input, 8"):
        pj.MiSS(rank=9).check(pj.Layer(8, 16))
