"""HiRA in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, by_module, uniform
from peftjax.hub.torch.config import ANY, FLAG, RANK, RATE, Field, table
from peftjax.hub.torch.modules import pattern_value
from peftjax.methods.hira import HiRA

_FIELDS: dict[str, Field] = {
    "fan_in_fan_out": FLAG,
    "hira_dropout": RATE,
    "init_weights": ANY,
    "r": RANK,
    "rank_pattern": table(RANK),
}


def _read(entry: Entry) -> Method:
    config = entry.config
    rank = pattern_value(config["rank_pattern"], entry.module, config["r"])
    return HiRA(rank, float(config["hira_dropout"]))


def _tensors(method: HiRA, layer: Layer) -> dict[str, Tensor]:
    a, b = (method.rank, layer.d_in), (layer.d_out, method.rank)
    names = "hira_A", "hira_B"
    if layer.kind == "embedding":
        names = "hira_embedding_A", "hira_embedding_B"
    return {
        "a": Tensor(names[0], a, flip=True),
        "b": Tensor(names[1], b, flip=True),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    rank, rank_pattern = by_module(methods, "rank")
    return {
        "r": rank,
        "rank_pattern": rank_pattern,
        "hira_dropout": uniform(methods, "dropout"),
    }


CODEC = Codec("HIRA", ("dense", "embedding"), _FIELDS, _read, _tensors, _write)
