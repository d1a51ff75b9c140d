"""CLIP for loading, saving, adapter files and presets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from peftjax.models.clip.config import read_clip, write_clip
from peftjax.models.clip.model import Clip
from peftjax.models.family import (
    NOTHING,
    Checkpoint,
    Family,
    Heads,
    Placements,
    text_example,
)
from peftjax.models.names import Kind, Named, module

# In the names of the original, with slashes.
_LAYER: dict[str, Kind] = {
    "layer_norm1": "norm",
    "self_attn/q_proj": "dense",
    "self_attn/k_proj": "dense",
    "self_attn/v_proj": "dense",
    "self_attn/out_proj": "dense",
    "layer_norm2": "norm",
    "mlp/fc1": "dense",
    "mlp/fc2": "dense",
}
_IMAGE, _TEXT = "vision_model.embeddings", "text_model.embeddings"
_TOWERS: tuple[tuple[str, str, Kind], ...] = (
    ("image/class_embedding", f"{_IMAGE}.class_embedding", "vector"),
    ("image/patch_embed", f"{_IMAGE}.patch_embedding", "conv"),
    ("image/position_embeddings", f"{_IMAGE}.position_embedding", "embedding"),
    # The original has this name.
    ("image/pre_norm", "vision_model.pre_layrnorm", "norm"),
    ("image/norm", "vision_model.post_layernorm", "norm"),
    ("text/token_embeddings", f"{_TEXT}.token_embedding", "embedding"),
    ("text/position_embeddings", f"{_TEXT}.position_embedding", "embedding"),
    ("text/norm", "text_model.final_layer_norm", "norm"),
    ("image_projection", "visual_projection", "dense"),
    ("text_projection", "text_projection", "dense"),
    ("logit_scale", "logit_scale", "scalar"),
)


def names(model: Clip, base: str) -> Named:
    for ours, theirs, kind in _TOWERS:
        yield from module(ours, theirs, kind)
    for ours, theirs, tower in (
        ("image", "vision_model", model.config.vision),
        ("text", "text_model", model.config.text),
    ):
        for i in range(tower.num_hidden_layers):
            for name, kind in _LAYER.items():
                original = f"{theirs}.encoder.layers.{i}.{name.replace('/', '.')}"
                yield from module(f"{ours}/layers_{i}/{name}", original, kind)


def _examples(model: Clip, channels: int) -> tuple[Any, ...]:
    side = model.config.vision.image_size
    shape = (1, side, side, model.config.vision.num_channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32), *text_example(model, channels)


CLIP = Family(
    Clip,
    called=("clip",),
    checkpoints=(
        Checkpoint(
            "clip",
            mark=r"text_model\.embeddings\.token_embedding\.weight",
            build=lambda config, shapes: Clip(read_clip(config)),
            head=("classifier.weight", 0),
            heads=NOTHING,
            unused=r"(text|vision)_model\.embeddings\.position_ids",
            new=NOTHING,
            architecture="CLIP",
        ),
    ),
    names={"hf": names},
    examples=_examples,
    write_config=lambda model, channels: write_clip(model.config),
    placements=Placements(
        {
            "query": "self_attn/q_proj",
            "key": "self_attn/k_proj",
            "value": "self_attn/v_proj",
            "output": "self_attn/out_proj",
            "up": "mlp/fc1",
            "down": "mlp/fc2",
        },
        stack="image/layers",
        head="head",
    ),
    heads=Heads(
        (),
        attribute=None,
        instead="image_classifier makes one from the embeddings of texts",
    ),
    tokenizer="tokenizer.json",
)
