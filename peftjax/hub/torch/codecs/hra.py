"""HRA in the torch library's files: reflections of a layer's input."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, FLAG, RANK, Field, only
from peftjax.methods.hra import HRA

_FIELDS: dict[str, Field] = {
    "apply_GS": FLAG,
    "bias": only("none", "all", "hra_only"),
    "init_weights": ANY,
    "r": RANK,
}


def _read(entry: Entry) -> Method:
    rank, gs = entry.config["r"], entry.config["apply_GS"]
    return HRA(
        rank,
        orthogonal=gs,
        allow_non_identity=rank % 2 == 1 and not gs,
    )


def _tensors(method: HRA, layer: Layer) -> dict[str, Tensor]:
    return {"u": Tensor("hra_u", (layer.d_in, method.rank), rows=True)}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    if uniform(methods, "side") != "input" or uniform(methods, "eps") != 0:
        raise ValueError(
            "the torch library reflects the input of a layer, with eps = 0; expected "
            f"HRA(side='input', eps=0.0), found {next(iter(methods.values()))}"
        )
    gs = uniform(methods, "orthogonal")
    return {"r": uniform(methods, "rank"), "apply_GS": gs}


# An embedding is left out there.
CODEC = Codec("HRA", ("dense", "conv"), _FIELDS, _read, _tensors, _write)
