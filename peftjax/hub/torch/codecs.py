"""The table of methods in the torch library's files, or why one has no place there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from math import isqrt, prod, sqrt
from typing import Any

from peftjax.core.method import Kind, Layer, Method
from peftjax.hub.torch import glora
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import (
    ANY,
    COUNT,
    FLAG,
    NAMES,
    NO,
    NUMBER,
    RANK,
    RATE,
    Config,
    Field,
    only,
    table,
)
from peftjax.hub.torch.modules import is_feedforward, pattern_value
from peftjax.methods import (
    HRA,
    IA3,
    OFT,
    SSF,
    Composition,
    DoRA,
    Full,
    GLoRA,
    GLoRASupernet,
    Hydra,
    HydraLoRA,
    LoKr,
    LoRA,
)

_EVERY: tuple[Kind, ...] = ("dense", "conv", "embedding")
_WIDE: tuple[Kind, ...] = ("dense", "conv")

# `fan_in_fan_out` is for GPT-2's layers; on others the library ignores it.
_LORA: dict[str, Field] = {
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


def _read_lora(entry: Entry) -> Method:
    config, module = entry.config, entry.module
    rank = pattern_value(config["rank_pattern"], module, config["r"])
    alpha = float(pattern_value(config["alpha_pattern"], module, config["lora_alpha"]))
    dropout = float(config["lora_dropout"])
    if not config["use_dora"]:
        return LoRA(rank, alpha, rs=config["use_rslora"], dropout=dropout)
    return DoRA(rank, alpha * (sqrt(rank) if config["use_rslora"] else 1), dropout)


def _lora_tensors(method: LoRA | DoRA, layer: Layer) -> dict[str, Tensor]:
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
    return {**_lora_tensors(method, layer), "magnitude": magnitude}


def _write_lora(methods: Methods, biased: set[str]) -> dict[str, Any]:
    ranks = {module: method.rank for module, method in methods.items()}
    alphas = {module: method.alpha for module, method in methods.items()}
    rank, rank_pattern = _patterns(ranks)
    alpha, alpha_pattern = _patterns(alphas)
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


def _patterns(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return the commonest value, and the others by module."""
    numbers = {m: int(v) if v == int(v) else v for m, v in values.items()}
    common = Counter(numbers.values()).most_common(1)[0][0]
    others = {m.replace(".", r"\."): v for m, v in numbers.items() if v != common}
    return common, others


_HRA: dict[str, Field] = {
    "apply_GS": FLAG,
    "bias": only("none", "all", "hra_only"),
    "init_weights": ANY,
    "r": RANK,
}


def _read_hra(entry: Entry) -> Method:
    rank, gs = entry.config["r"], entry.config["apply_GS"]
    return HRA(
        rank,
        orthogonal=gs,
        allow_non_identity=rank % 2 == 1 and not gs,
    )


def _hra_tensors(method: HRA, layer: Layer) -> dict[str, Tensor]:
    return {"u": Tensor("hra_u", (layer.d_in, method.rank), rows=True)}


def _write_hra(methods: Methods, biased: set[str]) -> dict[str, Any]:
    if uniform(methods, "side") != "input" or uniform(methods, "eps") != 0:
        raise ValueError(
            "the torch library reflects the input of a layer, with eps = 0; expected "
            f"HRA(side='input', eps=0.0), found {next(iter(methods.values()))}"
        )
    gs = uniform(methods, "orthogonal")
    return {"r": uniform(methods, "rank"), "apply_GS": gs}


_IA3: dict[str, Field] = {
    "fan_in_fan_out": FLAG,
    "feedforward_modules": NAMES,
    "init_ia3_weights": ANY,
}


def _read_ia3(entry: Entry) -> Method:
    inputs = is_feedforward(entry.config["feedforward_modules"], entry.module)
    return IA3(side="input" if inputs else "output")


def _ia3_tensors(method: IA3, layer: Layer) -> dict[str, Tensor]:
    count = method.count(layer)
    shape = (1, count) if method.side == "input" else (count, 1)
    shape = (1, count, 1, 1) if layer.spatial else shape
    return {"scale": Tensor("ia3_l", shape, ours=(count,))}


def _write_ia3(methods: Methods, biased: set[str]) -> dict[str, Any]:
    inputs = [module for module, method in methods.items() if method.side == "input"]
    return {"feedforward_modules": inputs}


_OFT: dict[str, Field] = {
    "bias": only("none", "all", "oft_only"),
    "block_share": FLAG,
    "coft": NO,
    "eps": ANY,
    "fan_in_fan_out": FLAG,
    "init_weights": ANY,
    "module_dropout": only(0, 0.0),  # OFT here has none
    "num_cayley_neumann_terms": only(5),
    "oft_block_size": COUNT,
    "r": COUNT,
    "use_cayley_neumann": only(True, False),
}


def _read_oft(entry: Entry) -> Method:
    config, neumann = entry.config, entry.config["use_cayley_neumann"]
    # The library changes a block that does not divide the layer, but not its config.
    *_, numbers = entry.shapes.get("oft_R.weight") or (1,)
    release = re.match(r"(\d+)\.(\d+)", config["peft_version"])
    if neumann and (release is None or tuple(map(int, release.groups())) < (0, 18)):
        raise ValueError(
            "use_cayley_neumann: expected peft_version 0.18 or newer, found "
            f"{config['peft_version']!r}; earlier ones have another series"
        )
    return OFT(
        block=(1 + isqrt(1 + 8 * numbers)) // 2,
        neumann=neumann,
        share=config["block_share"],
    )


def _oft_tensors(method: OFT, layer: Layer) -> dict[str, Tensor]:
    numbers = method.block * (method.block - 1) // 2
    return {"r": Tensor("oft_R.weight", (method.count(layer) // numbers, numbers))}


def _write_oft(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {
        "r": 0,
        "oft_block_size": uniform(methods, "block"),
        "use_cayley_neumann": uniform(methods, "neumann"),
        "block_share": uniform(methods, "share"),
        # The first release with this series; the library looks for it.
        "peft_version": "0.18.0",
    }


_LOKR: dict[str, Field] = {
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


def _read_lokr(entry: Entry) -> Method:
    config, module = entry.config, entry.module
    return LoKr(
        pattern_value(config["rank_pattern"], module, config["r"]),
        float(pattern_value(config["alpha_pattern"], module, config["alpha"])),
        factor=config["decompose_factor"],
        decompose_both=config["decompose_both"],
    )


def _lokr_tensors(method: LoKr, layer: Layer) -> dict[str, Tensor]:
    there = {"w1": "w1", "w1_a": "w1_b", "w1_b": "w1_a"}
    there |= {"w2": "w2", "w2_a": "w2_b", "w2_b": "w2_a"}
    return {
        name: Tensor(f"lokr_{there[name]}", shape[::-1], flip=True)
        for name, shape in method.shapes(layer).items()
    }


def _write_lokr(methods: Methods, biased: set[str]) -> dict[str, Any]:
    rank, rank_pattern = _patterns({m: method.rank for m, method in methods.items()})
    alpha, alpha_pattern = _patterns({m: method.alpha for m, method in methods.items()})
    return {
        "r": rank,
        "alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "decompose_factor": uniform(methods, "factor"),
        "decompose_both": uniform(methods, "decompose_both"),
    }


# HRA, IA3 and OFT there leave embeddings out or adapt their columns; OFT's blocks on a
# convolution run over another order of its window.
CODECS: dict[type[Method], Codec | str] = {
    LoRA: Codec("LORA", _EVERY, _LORA, _read_lora, _lora_tensors, _write_lora),
    DoRA: Codec("LORA", _EVERY, _LORA, _read_lora, _dora_tensors, _write_lora),
    LoKr: Codec("LOKR", ("dense",), _LOKR, _read_lokr, _lokr_tensors, _write_lokr),
    Hydra: "it has no branch that reads a layer's output",
    HydraLoRA: "it has no router over heads that share one A",
    GLoRA: glora.CODEC,
    GLoRASupernet: "it has no supernet; peftjax.to_glora fixes a structure",
    HRA: Codec("HRA", _WIDE, _HRA, _read_hra, _hra_tensors, _write_hra),
    Composition: "it has no weighted average of modules in one file; "
    "peftjax.convert.combine makes one LoRA of them",
    OFT: Codec("OFT", ("dense",), _OFT, _read_oft, _oft_tensors, _write_oft),
    IA3: Codec("IA3", _WIDE, _IA3, _read_ia3, _ia3_tensors, _write_ia3),
    SSF: "it has no scale and shift of a layer's output",
    Full: "it saves whole modules and biases instead, beside another method",
}
FIELDS = {
    codec.peft_type: codec.fields
    for codec in CODECS.values()
    if isinstance(codec, Codec)
}


def find_codec(config: Config) -> Codec:
    """Return the codec of a configuration."""
    dora = bool(config.get("use_dora"))
    return next(
        codec
        for method, codec in CODECS.items()
        if isinstance(codec, Codec)
        and codec.peft_type == config["peft_type"]
        and dora == (method is DoRA)
    )
