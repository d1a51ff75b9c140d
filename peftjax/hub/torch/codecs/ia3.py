"""IA3 in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor
from peftjax.hub.torch.config import ANY, FLAG, NAMES, Field
from peftjax.hub.torch.modules import is_feedforward
from peftjax.methods.ia3 import IA3

_FIELDS: dict[str, Field] = {
    "fan_in_fan_out": FLAG,
    "feedforward_modules": NAMES,
    "init_ia3_weights": ANY,
}


def _read(entry: Entry) -> Method:
    inputs = is_feedforward(entry.config["feedforward_modules"], entry.module)
    return IA3(side="input" if inputs else "output")


def _tensors(method: IA3, layer: Layer) -> dict[str, Tensor]:
    count = method.count(layer)
    shape = (1, count) if method.side == "input" else (count, 1)
    shape = (1, count, 1, 1) if layer.spatial else shape
    return {"scale": Tensor("ia3_l", shape, ours=(count,))}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    inputs = [module for module, method in methods.items() if method.side == "input"]
    return {"feedforward_modules": inputs}


# An embedding is scaled by columns there.
CODEC = Codec("IA3", ("dense", "conv"), _FIELDS, _read, _tensors, _write)
