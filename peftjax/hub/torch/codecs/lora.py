"""LoRA, DoRA, PiSSA and OLoRA in the torch library's files.

A file of PiSSA or OLoRA holds A and B alone: the library takes `s A_0 B_0` off the
weight when it loads one, as here is done where x is. `peftjax.to_lora` makes a LoRA of
rank 2r of them, for which no library needs the start.
"""

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
from peftjax.methods.offset import OffsetLoRA
from peftjax.methods.olora import OLoRA
from peftjax.methods.pissa import PiSSA

# `fan_in_fan_out` is for GPT-2's layers; on others the library ignores it.
FIELDS: dict[str, Field] = {
    "alpha_pattern": table(NUMBER),
    "bias": only("none", "all", "lora_only"),
    # Settings of starts that are refused below, and ignored with another start.
    "corda_config": ANY,
    "ensure_weight_tying": NO,
    "eva_config": ANY,
    "fan_in_fan_out": FLAG,
    # Starts that leave the frozen weight as it was, and two that have methods here.
    "init_lora_weights": only(
        True, False, "gaussian", "eva", "orthogonal", "mica", "pissa", "olora"
    ),
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

# What the library calls a start that here is a method.
_STARTS: dict[type[Method], str] = {PiSSA: "pissa", OLoRA: "olora"}


def _read(entry: Entry) -> Method:
    config, module = entry.config, entry.module
    rank = pattern_value(config["rank_pattern"], module, config["r"])
    alpha = float(pattern_value(config["alpha_pattern"], module, config["lora_alpha"]))
    dropout = float(config["lora_dropout"])
    start = config["init_lora_weights"]
    if config["use_dora"] and start in _STARTS.values():
        raise ValueError(f"use_dora with init_lora_weights={start!r} has no equal here")
    if not config["use_dora"]:
        kind: Any = {name: kind for kind, name in _STARTS.items()}.get(start, LoRA)
        return kind(rank, alpha, config["use_rslora"], dropout)
    return DoRA(rank, alpha * (sqrt(rank) if config["use_rslora"] else 1), dropout)


def _tensors(method: LoRA | DoRA | OffsetLoRA, layer: Layer) -> dict[str, Tensor]:
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
    kind = type(next(iter(methods.values())))
    dora, start = kind is DoRA, _STARTS.get(kind)
    return {
        **({"init_lora_weights": start} if start else {}),
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
OFFSET = CODEC._replace(kinds=("dense",), fresh=("a0", "b0"))
DORA = Codec("LORA", _EVERY, FIELDS, _read, _dora_tensors, _write)
