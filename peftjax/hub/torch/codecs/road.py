"""RoAd in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, RANK, Field, only
from peftjax.methods.road import RoAd

_FIELDS: dict[str, Field] = {
    "group_size": RANK,
    "init_weights": ANY,
    "variant": only("road_1", "road_2", "road_4"),
}


def _read(entry: Entry) -> Method:
    variant = int(entry.config["variant"].removeprefix("road_"))
    return RoAd(variant, entry.config["group_size"])


def _tensors(method: RoAd, layer: Layer) -> dict[str, Tensor]:
    size = method.variant * layer.d_out // 2
    return {
        "theta": Tensor("road_theta", (size,)),
        "alpha": Tensor("road_alpha", (size,)),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "variant": f"road_{uniform(methods, 'variant')}",
        "group_size": uniform(methods, "group"),
    }


CODEC = Codec("ROAD", ("dense",), _FIELDS, _read, _tensors, _write)
