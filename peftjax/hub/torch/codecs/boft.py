"""BOFT in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, COUNT, FLAG, RANK, Field, only
from peftjax.methods.boft import BOFT

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "boft_only"),
    "boft_block_num": COUNT,
    "boft_block_size": COUNT,
    "boft_dropout": only(0.0, 0),
    "boft_n_butterfly_factor": RANK,
    "fan_in_fan_out": FLAG,
    "init_weights": ANY,
}


def _read(entry: Entry) -> Method:
    # The library knows the size of a block or their number; without its CUDA kernel it
    # trains one factor, whatever the configuration says.
    factors, _, _, block = entry.shapes.get("boft_R", (1, 1, 1, 1))
    return BOFT(block, factors)


def _tensors(method: BOFT, layer: Layer) -> dict[str, Tensor]:
    n, b = layer.d_in // method.block, method.block
    return {
        "r": Tensor("boft_R", (method.factors, n, b, b)),
        "scale": Tensor("boft_s", (layer.d_out, 1), ours=(layer.d_out,)),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "boft_block_size": uniform(methods, "block"),
        "boft_block_num": 0,
        "boft_n_butterfly_factor": uniform(methods, "factors"),
    }


CODEC = Codec("BOFT", ("dense",), _FIELDS, _read, _tensors, _write)
