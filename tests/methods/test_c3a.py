"""C3A against the torch library."""

import pytest

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.C3A(block=8),)


def test_torch_library():
    assert check_torch_layer("c3a").method == pj.C3A(block=8)


def test_a_block_must_divide_both_sides():
    with pytest.raises(ValueError, match="a divisor of both"):
        pj.C3A(block=8).check(pj.Layer(16, 12))
