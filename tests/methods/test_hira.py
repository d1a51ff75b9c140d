"""HiRA against the torch library."""

import peftjax as pj
from tests.helpers.torch_layer import check_torch_layer

CHECKED = (pj.HiRA(rank=3, dropout=0.2),)


def test_torch_library():
    assert check_torch_layer("hira").method == pj.HiRA(rank=3)
