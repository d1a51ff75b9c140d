"""RoAd against the torch library, in its three variants."""

import pytest

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.RoAd(variant=4, group=2),)


@pytest.mark.parametrize(
    ("name", "variant", "group"), [("road", 1, 8), ("road_2", 2, 4), ("road_4", 4, 8)]
)
def test_torch_library(name, variant, group):
    assert check_torch_layer(name).method == pj.RoAd(variant, group)


@pytest.mark.parametrize("settings", [(3, 64), (1, 7)])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="an even group"):
        pj.RoAd(*settings)


def test_a_group_must_divide_the_output():
    with pytest.raises(ValueError, match="the layer's output, 10"):
        pj.RoAd(group=4).check(pj.Layer(8, 10))
