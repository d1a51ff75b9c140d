"""GraLoRA in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, COUNT, FLAG, NUMBER, RANK, RATE, Field, only
from peftjax.methods.gralora import GraLoRA

_FIELDS: dict[str, Field] = {
    "alpha": NUMBER,
    "bias": only("none", "all", "gralora_only"),
    "fan_in_fan_out": FLAG,
    "gralora_dropout": RATE,
    "gralora_k": RANK,
    "hybrid_r": COUNT,
    "init_weights": ANY,
    "r": RANK,
}


def _read(entry: Entry) -> Method:
    config = entry.config
    return GraLoRA(
        config["r"],
        float(config["alpha"]),
        config["gralora_k"],
        config["hybrid_r"],
        float(config["gralora_dropout"]),
    )


def _tensors(method: GraLoRA, layer: Layer) -> dict[str, Tensor]:
    k, r, h = method.parts, method.rank, method.hybrid
    found = {
        "a": Tensor("gralora_A", (k, layer.d_in // k, r)),
        "b": Tensor("gralora_B", (k, r, layer.d_out // k)),
    }
    if h:
        wide = {
            "wide_a": Tensor("gralora_A_general.weight", (h, layer.d_in), flip=True),
            "wide_b": Tensor("gralora_B_general.weight", (layer.d_out, h), flip=True),
        }
        found |= wide
    return found


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "r": uniform(methods, "rank"),
        "alpha": uniform(methods, "alpha"),
        "gralora_k": uniform(methods, "parts"),
        "hybrid_r": uniform(methods, "hybrid"),
        "gralora_dropout": uniform(methods, "dropout"),
    }


CODEC = Codec("GRALORA", ("dense",), _FIELDS, _read, _tensors, _write)
