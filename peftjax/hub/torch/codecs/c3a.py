"""C3A in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, by_module, uniform
from peftjax.hub.torch.config import RANK, Field, only, table
from peftjax.hub.torch.modules import pattern_value
from peftjax.methods.c3a import C3A

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "c3a_only"),
    "block_size": RANK,
    "block_size_pattern": table(RANK),
    "init_weights": only("xavier_uniform", True, False, "gaussian", "kaiming_uniform"),
}


def _read(entry: Entry) -> Method:
    config = entry.config
    block = pattern_value(
        config["block_size_pattern"], entry.module, config["block_size"]
    )
    return C3A(block, "zeros" if config["init_weights"] is True else "xavier")


def _tensors(method: C3A, layer: Layer) -> dict[str, Tensor]:
    b = method.block
    return {"w": Tensor("c3a_kernel", (layer.d_out // b, layer.d_in // b, b))}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    block, others = by_module(methods, "block")
    return {
        "block_size": block,
        "block_size_pattern": others,
        "init_weights": uniform(methods, "start") == "zeros" or "xavier_uniform",
    }


CODEC = Codec("C3A", ("dense",), _FIELDS, _read, _tensors, _write)
