"""DeLoRA in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, by_module, uniform
from peftjax.hub.torch.config import ANY, NUMBER, RANK, RATE, Field, only, table
from peftjax.hub.torch.modules import pattern_value
from peftjax.methods.delora import DeLoRA

_FIELDS: dict[str, Field] = {
    "bias": only("none", "all", "delora_only"),
    "delora_lambda": NUMBER,
    "init_weights": ANY,
    "lambda_pattern": table(NUMBER),
    "module_dropout": RATE,
    "r": RANK,
    "rank_pattern": table(RANK),
}


def _read(entry: Entry) -> Method:
    config, module = entry.config, entry.module
    return DeLoRA(
        pattern_value(config["rank_pattern"], module, config["r"]),
        float(pattern_value(config["lambda_pattern"], module, config["delora_lambda"])),
        float(config["module_dropout"]),
    )


def _tensors(method: DeLoRA, layer: Layer) -> dict[str, Tensor]:
    r, d_in, d_out = method.rank, layer.d_in, layer.d_out
    return {
        "a": Tensor("delora_A", (r, d_in), flip=True),
        "b": Tensor("delora_B", (d_out, r), flip=True),
        "strength": Tensor("delora_lambda", (1,), ours=()),
        "norm": Tensor("delora_w_norm", (d_in,)),
    }


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    rank, rank_pattern = by_module(methods, "rank")
    alpha, alpha_pattern = by_module(methods, "alpha")
    return {
        "r": rank,
        "rank_pattern": rank_pattern,
        "delora_lambda": alpha,
        "lambda_pattern": alpha_pattern,
        "module_dropout": uniform(methods, "dropout"),
    }


CODEC = Codec("DELORA", ("dense",), _FIELDS, _read, _tensors, _write)
