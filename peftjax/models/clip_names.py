"""The names of CLIP's modules in the original."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peftjax.models.clip_configs import ClipConfig

if TYPE_CHECKING:
    from peftjax.models.names import Kind

_LAYER: tuple[tuple[str, Kind], ...] = (
    ("layer_norm1", "norm"),
    ("self_attn/q_proj", "dense"),
    ("self_attn/k_proj", "dense"),
    ("self_attn/v_proj", "dense"),
    ("self_attn/out_proj", "dense"),
    ("layer_norm2", "norm"),
    ("mlp/fc1", "dense"),
    ("mlp/fc2", "dense"),
)
_TOWERS: tuple[tuple[str, str, Kind], ...] = (
    ("image/class_embedding", "vision_model.embeddings.class_embedding", "vector"),
    ("image/patch_embed", "vision_model.embeddings.patch_embedding", "conv"),
    (
        "image/position_embeddings",
        "vision_model.embeddings.position_embedding",
        "embedding",
    ),
    # The original has this name.
    ("image/pre_norm", "vision_model.pre_layrnorm", "norm"),
    ("image/norm", "vision_model.post_layernorm", "norm"),
    ("text/token_embeddings", "text_model.embeddings.token_embedding", "embedding"),
    (
        "text/position_embeddings",
        "text_model.embeddings.position_embedding",
        "embedding",
    ),
    ("text/norm", "text_model.final_layer_norm", "norm"),
    ("image_projection", "visual_projection", "dense"),
    ("text_projection", "text_projection", "dense"),
    ("logit_scale", "logit_scale", "scalar"),
)


def clip(config: ClipConfig) -> Iterator[tuple[str, str, Kind]]:
    """Yield path, original and kind of every module."""
    yield from _TOWERS
    for ours, theirs, tower in (
        ("image", "vision_model", config.vision),
        ("text", "text_model", config.text),
    ):
        for i in range(tower.num_hidden_layers):
            for name, kind in _LAYER:
                original = f"{theirs}.encoder.layers.{i}.{name.replace('/', '.')}"
                yield f"{ours}/layers_{i}/{name}", original, kind
