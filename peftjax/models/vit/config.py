"""The fields of a ViT from each kind of checkpoint: HF, timm, Google's `.npz`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from peftjax.models.config_json import Json, check_neutral, number, wrong
from peftjax.models.family import Shapes
from peftjax.models.files import CheckpointError
from peftjax.models.vit.model import ViT

# Name in an HF `config.json` -> ours and HF's default.
_HF_FIELDS: dict[str, tuple[str, Any]] = {
    "patch_size": ("patch_size", 16),
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("mlp_dim", 3072),
    "hidden_dropout_prob": ("dropout", 0.0),
    "layer_norm_eps": ("norm_eps", 1e-12),
}


def read_hf(config: Json, shapes: Shapes) -> ViT:
    """Return the headless ViT of an HF `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    check_neutral(config)
    if config.get("hidden_act", "gelu") != "gelu":
        raise wrong("hidden_act", "gelu", config)
    if number(config, "attention_probs_dropout_prob", 0.0):
        raise wrong("attention_probs_dropout_prob", "0, as in the paper", config)
    fields = {
        ours: number(config, theirs, default)
        for theirs, (ours, default) in _HF_FIELDS.items()
    }
    size = _size(config, "image_size") or (224, 224)
    return ViT(**fields, **_image(size), num_classes=0, fused_qkv=False)


def read_timm(config: Json, shapes: Shapes) -> ViT:
    """Return the headless ViT of a timm checkpoint.

    All but the number of heads and the epsilon follow from the shapes. Where no
    configuration gives these, they are width / 64 and 1e-6, as in timm's ViT-Ti to
    ViT-L.

    Raises:
        CheckpointError: a value does not fit the shapes, or the model pools the mean
            (timm keeps the class token there and normalises after the mean).
    """
    check_neutral(config)
    arguments = config.get("model_args")
    if isinstance(arguments, Mapping):
        config = {**config, **arguments}
    for name in ("global_pool", "pool"):
        if config.get(name) not in (None, "token", "cls"):
            raise wrong(name, "token, pooling by the class token", config)
    width, _, patch, _ = _shape(shapes, "patch_embed.proj.weight", 4)
    return ViT(
        **_image(_image_size(shapes, "pos_embed", patch, _size(config, "img_size"))),
        patch_size=patch,
        width=width,
        depth=_depth(shapes, r"blocks\.(\d+)\."),
        num_heads=number(config, "num_heads", max(width // 64, 1)),
        mlp_dim=_shape(shapes, "blocks.0.mlp.fc1.weight", 2)[0],
        num_classes=0,
        norm_eps=number(config, "layer_norm_eps", 1e-6),
    )


def read_npz(config: Json, shapes: Shapes) -> ViT:
    """Return the headless ViT of one of Google's `.npz` files, from its shapes."""
    patch, _, _, width = _shape(shapes, "embedding/kernel", 4)
    block = "Transformer/encoderblock_0"
    query = f"{block}/MultiHeadDotProductAttention_1/query/kernel"
    positions = "Transformer/posembed_input/pos_embedding"
    return ViT(
        **_image(_image_size(shapes, positions, patch, None)),
        patch_size=patch,
        width=width,
        depth=_depth(shapes, r"Transformer/encoderblock_(\d+)/"),
        num_heads=_shape(shapes, query, 3)[1],
        mlp_dim=_shape(shapes, f"{block}/MlpBlock_3/Dense_0/kernel", 2)[1],
        num_classes=0,
    )


def write_hf(model: ViT, channels: int) -> dict[str, Any]:
    """Return what `read_hf` reads.

    Raises:
        ValueError: the model pools the mean, which has no equal there.
    """
    if model.pooling != "cls":
        raise ValueError(
            'save: expected a ViT with pooling="cls"; the mean over patches without a '
            "class token has no equal in the HF layout"
        )
    size = model.image_size
    return {
        **{theirs: getattr(model, ours) for theirs, (ours, _) in _HF_FIELDS.items()},
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "image_size": size if isinstance(size, int) else list(size),
        "model_type": "vit",
        "num_channels": channels,
        "qkv_bias": True,
    }


def _size(config: Json, name: str) -> tuple[int, int] | None:
    value = config.get(name)
    if value is None:
        return None
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2:
        raise wrong(name, "one number or two", config)
    height, width = (number({name: side}, name, 1) for side in pair)
    return height, width


def _image(size: tuple[int, int]) -> dict[str, Any]:
    return {"image_size": size[0] if size[0] == size[1] else size}


def _image_size(
    shapes: Shapes, name: str, patch: int, size: tuple[int, int] | None
) -> tuple[int, int]:
    """Return the image size whose patches and class token make up the positions."""
    tokens = _shape(shapes, name, 3)[1]
    side = isqrt(tokens - 1) * patch
    height, width = size or (side, side)
    if (height // patch) * (width // patch) + 1 != tokens:
        raise CheckpointError(
            f"{name}: expected a class token and the patches of a {height}x{width} "
            f"image, side {patch}, found {tokens} tokens"
        )
    return height, width


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) != rank or 0 in found:
        raise CheckpointError(f"{name}: expected {rank} axes, found {found}")
    return found


def _depth(shapes: Shapes, pattern: str) -> int:
    numbers = {int(m[1]) for name in shapes if (m := re.match(pattern, name))}
    if numbers != set(range(len(numbers))):
        raise CheckpointError(
            f"{pattern}: expected layers from 0 on, found {sorted(numbers)}"
        )
    return len(numbers)
