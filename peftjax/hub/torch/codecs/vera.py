"""VeRA in the torch library's files: the pair stands above all modules."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, FLAG, NUMBER, RANK, RATE, Field, only
from peftjax.methods.vera import VeRA

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "vera_only"),
    "d_initial": NUMBER,
    "fan_in_fan_out": FLAG,
    "init_weights": ANY,
    "projection_prng_key": ANY,
    "r": RANK,
    "save_projection": only(True),  # without the pair only torch can draw it again
    "vera_dropout": RATE,
}


def _read(entry: Entry) -> Method:
    config = entry.config
    _, d_in = entry.shared.get("vera_A", (0, 1))
    d_out, _ = entry.shared.get("vera_B", (1, 0))
    start, dropout = float(config["d_initial"]), float(config["vera_dropout"])
    return VeRA(config["r"], d_in, d_out, start, dropout)


def _tensors(method: VeRA, layer: Layer) -> dict[str, Tensor]:
    return {
        "d": Tensor("vera_lambda_d", (method.rank,)),
        "l": Tensor("vera_lambda_b", (layer.d_out,)),
    }


def _shared(method: VeRA, layer: Layer) -> dict[str, Tensor]:
    d_in, d_out = method.pair(layer)
    return {
        "a": Tensor("vera_A", (method.rank, d_in), flip=True),
        "b": Tensor("vera_B", (d_out, method.rank), flip=True),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "r": uniform(methods, "rank"),
        "d_initial": uniform(methods, "d_initial"),
        "vera_dropout": uniform(methods, "dropout"),
        "save_projection": True,
    }


CODEC = Codec("VERA", ("dense",), _FIELDS, _read, _tensors, _write, shared=_shared)
