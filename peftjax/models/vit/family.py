"""ViT for loading, saving, adapter files and presets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from peftjax.models.family import Checkpoint, Family, Heads, Placements
from peftjax.models.vit import names
from peftjax.models.vit.config import read_hf, read_npz, read_timm, write_hf
from peftjax.models.vit.model import ViT
from peftjax.models.vit.positions import resize_pos_embed

_HF = Checkpoint(
    "vit",
    mark=r"(vit\.)?embeddings\.patch_embeddings\.projection\.weight",
    build=read_hf,
    head=("classifier.weight", 0),
    heads=r"classifier\..*",
    unused=r"(vit\.)?(pooler\..*|embeddings\.mask_token)",
    new=r"head/.*",
    prefix="vit.",
    architecture="ViT",
)
_TIMM = Checkpoint(
    "timm ViT",
    mark=r"patch_embed\.proj\.weight",
    build=read_timm,
    head=("head.weight", 0),
    heads=r"head\..*",
    new=r"head/.*",
    layout="timm",
)
_NPZ = Checkpoint(
    "npz ViT",
    mark=r"Transformer/encoder_norm/scale",
    build=read_npz,
    head=("head/kernel", 1),
    heads=r"(head|pre_logits)/.*",
    new=r"head/.*",
    layout="npz",
    refused={
        "pre_logits/kernel": "this file's own head needs a layer that the ViT here "
        "does not have (nor do the papers' models)"
    },
)


def _examples(model: ViT, channels: int) -> tuple[Any, ...]:
    height, width = (side * model.patch_size for side in model.grid)
    return (jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32),)


def _resize(model: ViT, params: dict[str, Any], image_size: Any) -> tuple[ViT, Any]:
    new = model.clone(image_size=image_size)
    positions = resize_pos_embed(params["pos_embed"], new.grid, model.grid)
    return new, {**params, "pos_embed": positions}


VIT = Family(
    ViT,
    called=("vit",),
    checkpoints=(_HF, _TIMM, _NPZ),
    names={
        "hf5": names.hf5,
        "hf": names.hf,
        "timm": names.timm,
        "npz": names.npz,
    },
    examples=_examples,
    write_config=write_hf,
    placements=Placements(
        {
            "query": "attn/(qkv|q)",
            "key": "attn/(qkv|k)",
            "value": "attn/(qkv|v)",
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
    heads=Heads(("none",), "num_classes", absent=0, task="ForImageClassification"),
    depth=lambda model: model.depth,
    resize=_resize,
)
