"""LoHa in the torch library's files: there the factors change places."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, by_module
from peftjax.hub.torch.config import ANY, NUMBER, RANK, Field, only, table
from peftjax.hub.torch.modules import pattern_value
from peftjax.methods.loha import LoHa

_FIELDS: dict[str, Field] = {
    "alpha": NUMBER,
    "alpha_pattern": table(NUMBER),
    "init_weights": ANY,
    "module_dropout": only(0, 0.0),
    "r": RANK,
    "rank_dropout": only(0, 0.0),
    "rank_pattern": table(RANK),
    "use_effective_conv2d": ANY,
}


def _read(entry: Entry) -> Method:
    config, module = entry.config, entry.module
    return LoHa(
        pattern_value(config["rank_pattern"], module, config["r"]),
        float(pattern_value(config["alpha_pattern"], module, config["alpha"])),
    )


def _tensors(method: LoHa, layer: Layer) -> dict[str, Tensor]:
    a, b = (method.rank, layer.d_in), (layer.d_out, method.rank)
    return {
        "a1": Tensor("hada_w1_b", a, flip=True),
        "b1": Tensor("hada_w1_a", b, flip=True),
        "a2": Tensor("hada_w2_b", a, flip=True),
        "b2": Tensor("hada_w2_a", b, flip=True),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    rank, rank_pattern = by_module(methods, "rank")
    alpha, alpha_pattern = by_module(methods, "alpha")
    return {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


CODEC = Codec("LOHA", ("dense",), _FIELDS, _read, _tensors, _write)
