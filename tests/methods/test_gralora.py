"""GraLoRA against the torch library, with and without a LoRA beside it."""

import pytest

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.GraLoRA(rank=4, alpha=7.0, hybrid=2, dropout=0.2),)


@pytest.mark.parametrize(
    ("name", "parts", "hybrid"), [("gralora", 2, 0), ("gralora_hybrid", 4, 2)]
)
def test_torch_library(name, parts, hybrid):
    case = check_torch_layer(name)
    assert case.method == pj.GraLoRA(4, alpha=6.0, parts=parts, hybrid=hybrid)


def test_parts_must_divide():
    with pytest.raises(ValueError, match="a rank that parts divides"):
        pj.GraLoRA(rank=3, alpha=1.0)
    with pytest.raises(ValueError, match="does not divide a .8, 6. weight"):
        pj.GraLoRA(rank=4, alpha=1.0, parts=4).check(pj.Layer(8, 6))
