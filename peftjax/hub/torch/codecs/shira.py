"""SHiRA in the torch library's files, with the places of the entries."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, FLAG, RANK, Field
from peftjax.methods.shira import SHiRA

_FIELDS: dict[str, Field] = {
    "fan_in_fan_out": FLAG,
    "init_weights": ANY,
    "mask_type": ANY,
    "r": RANK,
    "random_seed": ANY,
}


def _read(entry: Entry) -> Method:
    return SHiRA(entry.config["r"])


def _tensors(method: SHiRA, layer: Layer) -> dict[str, Tensor]:
    n = method.count(layer)
    return {
        "weight": Tensor("shira_weight", (n,)),
        "indices": Tensor("shira_indices", (2, n), below=(layer.d_out, layer.d_in)),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {"r": uniform(methods, "rank")}


CODEC = Codec("SHIRA", ("dense",), _FIELDS, _read, _tensors, _write)
