"""RandLoRA in the torch library's files: bases above all modules, copied in each."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, FLAG, NUMBER, RANK, RATE, Field, only
from peftjax.methods.randlora import RandLoRA

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "randlora_only"),
    "fan_in_fan_out": FLAG,
    "init_weights": ANY,
    "projection_prng_key": ANY,
    "r": RANK,
    "randlora_alpha": NUMBER,
    "randlora_dropout": RATE,
    "save_projection": only(True),
    "sparse": ANY,
    "very_sparse": ANY,
}


def _read(entry: Entry) -> Method:
    config = entry.config
    *_, least = entry.shared.get("randlora_A", (1,))
    most, *_ = entry.shared.get("randlora_B", (1,))
    alpha, dropout = float(config["randlora_alpha"]), float(config["randlora_dropout"])
    return RandLoRA(config["r"], alpha, least, most, dropout)


def _tensors(method: RandLoRA, layer: Layer) -> dict[str, Tensor]:
    narrow = min(layer.d_in, layer.d_out)
    n = -(-narrow // method.rank)
    return {
        "coefficients": Tensor("randlora_lambda", (method.rank, n)),
        "gamma": Tensor("randlora_gamma", (n, narrow)),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "r": uniform(methods, "rank"),
        "randlora_alpha": uniform(methods, "alpha"),
        "randlora_dropout": uniform(methods, "dropout"),
        "save_projection": True,
    }


def _shared(method: RandLoRA, layer: Layer) -> dict[str, Tensor]:
    (least, most), r = method.largest(layer), method.rank
    shape = r, 1, least
    return {
        "base_a": Tensor("randlora_A", shape, ours=(r, least)),
        "base_b": Tensor("randlora_B", (most, -(-least // r), r)),
    }


CODEC = Codec(
    "RANDLORA",
    ("dense",),
    _FIELDS,
    _read,
    _tensors,
    _write,
    shared=_shared,
    copied=True,
)
