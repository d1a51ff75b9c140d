"""DINOv2 for loading, saving, adapter files and presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.models.dinov2.config import read_dinov2, write_dinov2
from peftjax.models.dinov2.model import Dinov2
from peftjax.models.family import Checkpoint, Family, Heads, Placements
from peftjax.models.names import Kind, Named, module

_OUTSIDE: tuple[tuple[str, str, Kind], ...] = (
    ("cls_token", "embeddings.cls_token", "array"),
    ("pos_embed", "embeddings.position_embeddings", "array"),
    ("patch_embed", "embeddings.patch_embeddings.projection", "conv"),
    ("norm", "layernorm", "norm"),
)
_LAYER: tuple[tuple[str, str, Kind], ...] = (
    ("norm1", "norm1", "norm"),
    ("scale1", "layer_scale1.lambda1", "vector"),
    ("norm2", "norm2", "norm"),
    ("mlp/fc1", "mlp.fc1", "dense"),
    ("mlp/fc2", "mlp.fc2", "dense"),
    ("scale2", "layer_scale2.lambda1", "vector"),
)
# Files and transformers 4; the modules of transformers 5.
_ATTENTION = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "proj": "attention.output.dense",
}
_ATTENTION5 = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "proj": "attention.o_proj",
}


def hf(model: Dinov2, base: str) -> Named:
    return _names(model, base, _ATTENTION)


def hf5(model: Dinov2, base: str) -> Named:
    return _names(model, base, _ATTENTION5)


def _names(model: Dinov2, base: str, attention: Mapping[str, str]) -> Named:
    for ours, theirs, kind in _OUTSIDE:
        yield from module(ours, f"{base}{theirs}", kind)
    for i in range(model.config.num_hidden_layers):
        layer = f"{base}encoder.layer.{i}"
        for ours, theirs, kind in _LAYER:
            yield from module(f"blocks_{i}/{ours}", f"{layer}.{theirs}", kind)
        for ours, theirs in attention.items():
            yield from module(f"blocks_{i}/attn/{ours}", f"{layer}.{theirs}", "dense")
    yield from module("head", "classifier", "dense")


def _examples(model: Dinov2, channels: int) -> tuple[Any, ...]:
    side = model.config.patch_size
    shape = (1, side, side, model.config.num_channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)


DINOV2 = Family(
    Dinov2,
    called=("dinov2",),
    checkpoints=(
        Checkpoint(
            "dinov2",
            mark=r"(dinov2\.)?embeddings\.patch_embeddings\.projection\.weight",
            build=lambda config, shapes: Dinov2(read_dinov2(config)),
            head=("classifier.weight", 0),
            heads=r"classifier\..*",
            unused=r"(dinov2\.)?embeddings\.mask_token",
            new=r"head/.*",
            prefix="dinov2.",
            architecture="Dinov2",
        ),
    ),
    names={"hf5": hf5, "hf": hf},
    examples=_examples,
    write_config=lambda model, channels: write_dinov2(model.config),
    placements=Placements(
        {
            "query": "attn/q",
            "key": "attn/k",
            "value": "attn/v",
            "output": "attn/proj",
            "up": "mlp/fc1",
            "down": "mlp/fc2",
        },
        stack="blocks",
        patches="patch_embed",
        head="head",
        prefix=r"blocks(_\d+)?/prompts",
        like="vit",
    ),
    heads=Heads(("none",), task="ForImageClassification"),
)
