"""The conditional U-Net for loading, saving, adapter files and presets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.models.family import NOTHING, Checkpoint, Family, Heads, Placements
from peftjax.models.names import Kind, Named, module
from peftjax.models.unet.config import read_unet, write_unet
from peftjax.models.unet.model import UNet2DConditionModel

_RESNET: tuple[tuple[str, Kind], ...] = (
    ("norm1", "norm"),
    ("conv1", "conv"),
    ("time_emb_proj", "dense"),
    ("norm2", "norm"),
    ("conv2", "conv"),
    ("conv_shortcut", "conv"),
)
_OUTSIDE: tuple[tuple[str, Kind], ...] = (
    ("conv_in", "conv"),
    ("time_embedding/linear_1", "dense"),
    ("time_embedding/linear_2", "dense"),
    ("add_embedding/linear_1", "dense"),
    ("add_embedding/linear_2", "dense"),
    ("conv_norm_out", "norm"),
    ("conv_out", "conv"),
)
_LAYER: tuple[tuple[str, str, Kind], ...] = (
    *((f"norm{i}", f"norm{i}", "norm") for i in (1, 2, 3)),
    *(
        (f"attn{i}/{part}", f"attn{i}.{part}{'.0' * (part == 'to_out')}", "dense")
        for i in (1, 2)
        for part in ("to_q", "to_k", "to_v", "to_out")
    ),
    ("ff/proj", "ff.net.0.proj", "dense"),
    ("ff/out", "ff.net.2", "dense"),
)


def resnet(ours: str, theirs: str) -> Named:
    """Yield the names of a residual block."""
    for name, kind in _RESNET:
        yield from module(f"{ours}/{name}", f"{theirs}.{name}", kind)


def _transformer(ours: str, theirs: str, depth: int, linear: bool) -> Named:
    yield from module(f"{ours}/norm", f"{theirs}.norm", "norm")
    for name in ("proj_in", "proj_out"):
        kind = "dense" if linear else "conv"
        yield from module(f"{ours}/{name}", f"{theirs}.{name}", kind)
    for i in range(depth):
        for name, original, kind in _LAYER:
            layer = f"{theirs}.transformer_blocks.{i}"
            path = f"{ours}/transformer_blocks_{i}/{name}"
            yield from module(path, f"{layer}.{original}", kind)


def _levels(model: UNet2DConditionModel) -> Iterator[tuple[str, str, int, int]]:
    """Yield the path, torch's name, residual blocks and transformers' depth of each."""
    config = model.config
    count, layers = config.layers_per_block, config.layers()
    for i, depth in enumerate(layers):
        yield f"down_blocks_{i}", f"down_blocks.{i}", count, depth
    for i, depth in enumerate(reversed(layers)):
        yield f"up_blocks_{i}", f"up_blocks.{i}", count + 1, depth
    middle = config.each("transformer_layers_per_block")[-1]
    yield "mid_block", "mid_block", 2, middle


def names(model: UNet2DConditionModel, base: str) -> Named:
    for name, kind in _OUTSIDE:
        yield from module(name, name.replace("/", "."), kind)
    linear = model.config.use_linear_projection
    for ours, theirs, count, depth in _levels(model):
        for way in ("down", "up"):
            original = f"{theirs}.{way}samplers.0.conv"
            yield from module(f"{ours}/{way}sample", original, "conv")
        for i in range(count):
            yield from resnet(f"{ours}/resnets_{i}", f"{theirs}.resnets.{i}")
            path, original = f"{ours}/attentions_{i}", f"{theirs}.attentions.{i}"
            yield from _transformer(path, original, depth, linear)


def _examples(model: UNet2DConditionModel, channels: int) -> tuple[Any, ...]:
    config = model.config
    side = 2 ** (len(config.block_out_channels) - 1)
    added = config.addition_embed_type is not None
    shapes = [
        ((1, side, side, config.in_channels), jnp.float32),
        ((1,), jnp.int32),
        ((1, 2, config.cross_attention_dim), jnp.float32),
        *(((1, n), jnp.float32) for n in (config.text_features, 6) if added),
    ]
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)


def _depth(model: UNet2DConditionModel) -> int:
    return sum(count * (1 + depth) for *_, count, depth in _levels(model))


UNET = Family(
    UNet2DConditionModel,
    called=("unet",),
    checkpoints=(
        Checkpoint(
            "UNet2DConditionModel",
            mark=r"down_blocks\.0\.resnets\.0\.time_emb_proj\.weight",
            build=lambda config, shapes: UNet2DConditionModel(read_unet(config)),
            head=("", 0),
            heads=NOTHING,
            new=NOTHING,
            stem="diffusion_pytorch_model",
        ),
    ),
    names={"hf": names},
    examples=_examples,
    write_config=lambda model, channels: write_unet(model.config),
    placements=Placements(
        {
            "query": "attn[12]/to_q",
            "key": "attn[12]/to_k",
            "value": "attn[12]/to_v",
            "output": "attn[12]/to_out",
            "up": "ff/proj",
            "down": "ff/out",
        },
        stack=r".*/attentions_\d+/transformer_blocks",
        head=None,
        like="unet",
    ),
    heads=Heads((), attribute=None, instead="it predicts noise"),
    depth=_depth,
)
