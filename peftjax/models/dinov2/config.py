"""The architecture of DINOv2, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peftjax.models.config_json import Json, check_neutral, filled, wrong


@dataclass(frozen=True)
class Dinov2Config:
    """The architecture, in the names of the original's `config.json`.

    Attributes:
        hidden_size: features per token.
        num_hidden_layers: number of layers.
        num_attention_heads: attention heads.
        mlp_ratio: hidden features of the MLP, in multiples of `hidden_size`.
        image_size: side of the images that the table of positions is for; others
            interpolate it.
        patch_size: side of a patch.
        num_channels: channels of the images.
        layer_norm_eps: epsilon of every LayerNorm.
        layerscale_value: where the scales of the branches start.
        drop_path_rate: probability of dropping a branch, the same in every layer.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0


# What the model here computes where the original has a choice.
_ONLY = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "use_swiglu_ffn": False,
}


def read_dinov2(config: Json) -> Dinov2Config:
    """Return the fields in a DINOv2's `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute, the SwiGLU of ViT-g for one.
    """
    check_neutral(config)
    for name, only in _ONLY.items():
        if config.get(name, only) not in (only, None):
            raise wrong(name, f"{only!r}, all that the model here computes", config)
    return filled(Dinov2Config(), config)


def write_dinov2(config: Dinov2Config) -> dict[str, Any]:
    """Return what `read_dinov2` reads."""
    fields = {**dataclasses.asdict(config), **_ONLY}
    return {**fields, "model_type": "dinov2", "qkv_bias": True, "use_mask_token": False}
