"""SHiRA against the torch library; its places are in the file."""

import numpy as np
import pytest

import peftjax as pj
from tests.helpers.goldens import KEY
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.SHiRA(rank=2),)


def test_torch_library():
    assert check_torch_layer("shira", start=False).method == pj.SHiRA(rank=2)


def test_places_are_distinct_and_inside():
    p = pj.SHiRA(rank=2).init(KEY, pj.Layer(9, 6))
    columns, rows = np.asarray(p["indices"])
    assert len({*zip(columns, rows)}) == 30 and p["weight"].shape == (30,)
    assert columns.max() < 6 and rows.max() < 9 and not p["weight"].any()
    with pytest.raises(ValueError, match="30 entries, more than the 14"):
        pj.SHiRA(rank=2).check(pj.Layer(1, 14))
