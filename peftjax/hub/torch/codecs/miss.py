"""MiSS in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, RANK, RATE, Field, only
from peftjax.methods.miss import MiSS

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "miss_only"),
    "init_weights": only(True, False),
    "mini_r": ANY,
    "miss_dropout": RATE,
    "r": RANK,
}


def _read(entry: Entry) -> Method:
    return MiSS(entry.config["r"], float(entry.config["miss_dropout"]))


def _tensors(method: MiSS, layer: Layer) -> dict[str, Tensor]:
    return {"d": Tensor("miss_block", (method.rank, layer.d_out))}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "r": uniform(methods, "rank"),
        "miss_dropout": uniform(methods, "dropout"),
    }


CODEC = Codec("MISS", ("dense",), _FIELDS, _read, _tensors, _write)
