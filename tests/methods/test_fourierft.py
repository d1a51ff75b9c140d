"""FourierFT against the torch library: the same places from the same seed."""

import pytest

import peftjax as pj
from peftjax.methods.fourierft import places
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.FourierFT(frequencies=20, scale=20.0),)


def test_torch_library():
    case = check_torch_layer("fourierft")
    assert case.method == pj.FourierFT(frequencies=40, scale=20.0)


def test_places_are_those_of_a_whole_permutation():
    assert sorted(places(30, 30, 7)) == [*range(30)]
    assert places(30, 5, 7).tolist() == places(30, 30, 7)[:5].tolist()


def test_no_more_frequencies_than_entries():
    with pytest.raises(ValueError, match="at most the 12 entries"):
        pj.FourierFT(frequencies=13).check(pj.Layer(3, 4))
