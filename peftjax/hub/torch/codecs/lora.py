"""LoRA and DoRA in the torch library's files."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

from peftjax.core.method import Kind, Layer, Method
from peftjax.hub.torch.codec import (
    Codec,
    Entry,
    Methods,
    Tensor,
    by_module,
    uniform,
)
from peftjax.hub.torch.config import (
    ANY,
    FLAG,
    NO,
    NUMBER,
    RANK,
    RATE,
    Field,
    only,
    table,
)
from peftjax.hub.torch.modules import pattern_value
from peftjax.methods.dora import DoRA
from peftjax.methods.lora import LoRA

# `fan_in_fan_out` is for GPT-2's layers; on others the library ignores it.
FIELDS: dict[str, Field] = {
    "alpha_pattern": table(NUMBER),
    "bias": only("none", "all", "lora_only"),
    # Settings of starts that are refused below, and ignored with another start.
    "corda_config": ANY,
    "ensure_weight_tying": NO,
    "eva_config": ANY,
    "fan_in_fan_out": FLAG,
    # Starts that leave the frozen weight as it was; the others subtract from it.
    "init_lora_weights": only(True, False, "gaussian", "eva", "orthogonal", "mica"),
    "layer_replication": only([]),
    "loftq_config": ANY,
    "lora_alpha": NUMBER,
    "lora_bias": NO,
    "lora_dropout": RATE,
    "lora_ga_config": ANY,
    "megatron_core": ANY,
    "merge_weights": FLAG,
    "qalora_group_size": ANY,
    "r": RANK,
    "rank_pattern": table(RANK),
    "target_parameters": only([]),
    "use_dora": FLAG,
    "use_qalora": NO,
    "use_rslora": FLAG,
}


def _read(entry: Entry) -> Method:
    config, module = entry.config, entry.module
    rank = pattern_value(config["rank_pattern"], module, config["r"])
    alpha = float(pattern_value(config["alpha_pattern"], module, config["lora_alpha"]))
    dropout = float(config["lora_dropout"])
    if not config["use_dora"]:
        return LoRA(rank, alpha, rs=config["use_rslora"], dropout=dropout)
    return DoRA(rank, alpha * (sqrt(rank) if config["use_rslora"] else 1), dropout)


def _tensors(method: LoRA | DoRA, layer: Layer) -> dict[str, Tensor]:
    r, d_in, d_out = method.rank, layer.d_in, layer.d_out
    if layer.kind == "embedding":
        return {
            "a": Tensor("lora_embedding_A", (r, d_in), flip=True),
            "b": Tensor("lora_embedding_B", (d_out, r), flip=True),
        }
    ones = (1,) * len(layer.spatial)
    features = (d_in // prod(layer.spatial), *layer.spatial)
    return {
        "a": Tensor("lora_A.weight", (r, *features), flip=True, rows=True),
        "b": Tensor("lora_B.weight", (d_out, r, *ones), flip=True),
    }


def _dora_tensors(method: DoRA, layer: Layer) -> dict[str, Tensor]:
    shape = (1, layer.d_out, 1, 1) if layer.spatial else (layer.d_out,)
    magnitude = Tensor("lora_magnitude_vector", shape, ours=(layer.d_out,))
    return {**_tensors(method, layer), "magnitude": magnitude}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    rank, rank_pattern = by_module(methods, "rank")
    alpha, alpha_pattern = by_module(methods, "alpha")
    dora = isinstance(next(iter(methods.values())), DoRA)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "lora_dropout": uniform(methods, "dropout"),
        "use_dora": dora,
        "use_rslora": False if dora else uniform(methods, "rs"),
    }


_EVERY: tuple[Kind, ...] = ("dense", "conv", "embedding")
CODEC = Codec("LORA", _EVERY, FIELDS, _read, _tensors, _write)
DORA = Codec("LORA", _EVERY, FIELDS, _read, _dora_tensors, _write)
