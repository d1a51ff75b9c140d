"""CLIP, and its text tower alone, for loading, saving, adapter files and presets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from peftjax.models.clip.config import (
    ClipTextConfig,
    ClipVisionConfig,
    read_clip,
    read_clip_text,
    write_clip,
    write_clip_text,
)
from peftjax.models.clip.model import Clip, ClipText
from peftjax.models.config_json import Json
from peftjax.models.family import (
    NOTHING,
    Checkpoint,
    Family,
    Heads,
    Placements,
    Shapes,
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
_IMAGE, _TEXT = "vision_model.embeddings", "embeddings"
_IMAGE_TOWER: tuple[tuple[str, str, Kind], ...] = (
    ("image/class_embedding", f"{_IMAGE}.class_embedding", "vector"),
    ("image/patch_embed", f"{_IMAGE}.patch_embedding", "conv"),
    ("image/position_embeddings", f"{_IMAGE}.position_embedding", "embedding"),
    # The original has this name.
    ("image/pre_norm", "vision_model.pre_layrnorm", "norm"),
    ("image/norm", "vision_model.post_layernorm", "norm"),
    ("image_projection", "visual_projection", "dense"),
    ("logit_scale", "logit_scale", "scalar"),
)
_TEXT_TOWER: tuple[tuple[str, str, Kind], ...] = (
    ("text/token_embeddings", f"{_TEXT}.token_embedding", "embedding"),
    ("text/position_embeddings", f"{_TEXT}.position_embedding", "embedding"),
    ("text/norm", "final_layer_norm", "norm"),
)


def names(model: Clip, base: str) -> Named:
    for ours, theirs, kind in _IMAGE_TOWER:
        yield from module(ours, theirs, kind)
    yield from _layers("image", "vision_model.", model.config.vision)
    yield from _text(model.config.text, "text_model.")


def text_names(model: ClipText, base: str) -> Named:
    return _text(model.config, base)


def _text(config: ClipTextConfig, base: str) -> Named:
    for ours, theirs, kind in _TEXT_TOWER:
        yield from module(ours, f"{base}{theirs}", kind)
    yield from _layers("text", base, config)
    yield from module("text_projection", "text_projection", "dense")


def _layers(ours: str, base: str, config: ClipTextConfig | ClipVisionConfig) -> Named:
    for i in range(config.num_hidden_layers):
        for name, kind in _LAYER.items():
            original = f"{base}encoder.layers.{i}.{name.replace('/', '.')}"
            yield from module(f"{ours}/layers_{i}/{name}", original, kind)


def _examples(model: Clip, channels: int) -> tuple[Any, ...]:
    side = model.config.vision.image_size
    shape = (1, side, side, model.config.vision.num_channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32), *text_example(model, channels)


_PARTS = {
    "query": "self_attn/q_proj",
    "key": "self_attn/k_proj",
    "value": "self_attn/v_proj",
    "output": "self_attn/out_proj",
    "up": "mlp/fc1",
    "down": "mlp/fc2",
}
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
    placements=Placements(_PARTS, stack="image/layers", head="head"),
    heads=Heads(
        (),
        attribute=None,
        instead="image_classifier makes one from the embeddings of texts",
    ),
    tokenizer="tokenizer.json",
)


def _build(config: Json, shapes: Shapes) -> ClipText:
    projection = shapes.get("text_projection.weight")
    return ClipText(read_clip_text(config), projection[0] if projection else None)


CLIP_TEXT = Family(
    ClipText,
    called=("clip_text",),
    checkpoints=(
        Checkpoint(
            "clip_text_model",
            # Transformers 5 leaves the prefix out where there is no projection.
            mark=r"(text_model\.)?embeddings\.token_embedding\.weight",
            build=_build,
            head=("", 0),
            heads=NOTHING,
            unused=r"(text_model\.)?embeddings\.position_ids",
            new=NOTHING,
            prefix="text_model.",
        ),
    ),
    names={"hf": text_names},
    examples=text_example,
    write_config=lambda model, channels: write_clip_text(
        model.config, model.projection_dim
    ),
    placements=Placements(_PARTS, stack="text/layers", head=None),
    heads=Heads((), attribute=None, instead="it encodes texts"),
    tokenizer="tokenizer.json",
)
