"""LoKr in the torch library's files: there the factors change places."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import (
    Codec,
    Entry,
    Methods,
    Tensor,
    by_module,
    uniform,
)
from peftjax.hub.torch.config import ANY, FLAG, NUMBER, RANK, Field, only, table
from peftjax.hub.torch.modules import pattern_value
from peftjax.methods.lokr import LoKr

_FIELDS: dict[str, Field] = {
    "alpha": NUMBER,
    "alpha_pattern": table(NUMBER),
    "decompose_both": FLAG,
    "decompose_factor": ANY,
    "init_weights": ANY,
    "module_dropout": only(0, 0.0),  # LoKr here has none
    "r": RANK,
    "rank_dropout": only(0, 0.0),
    "rank_dropout_scale": ANY,
    "rank_pattern": table(RANK),
    "use_effective_conv2d": ANY,
}


def _read(entry: Entry) -> Method:
    config, module = entry.config, entry.module
    return LoKr(
        pattern_value(config["rank_pattern"], module, config["r"]),
        float(pattern_value(config["alpha_pattern"], module, config["alpha"])),
        factor=config["decompose_factor"],
        decompose_both=config["decompose_both"],
    )


def _tensors(method: LoKr, layer: Layer) -> dict[str, Tensor]:
    there = {"w1": "w1", "w1_a": "w1_b", "w1_b": "w1_a"}
    there |= {"w2": "w2", "w2_a": "w2_b", "w2_b": "w2_a"}
    return {
        name: Tensor(f"lokr_{there[name]}", shape[::-1], flip=True)
        for name, shape in method.shapes(layer).items()
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    rank, rank_pattern = by_module(methods, "rank")
    alpha, alpha_pattern = by_module(methods, "alpha")
    return {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "decompose_factor": uniform(methods, "factor"),
        "decompose_both": uniform(methods, "decompose_both"),
    }


CODEC = Codec("LOKR", ("dense",), _FIELDS, _read, _tensors, _write)
