"""The autoencoder for loading, saving, adapter files and presets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from peftjax.models.family import NOTHING, Checkpoint, Family, Heads, Placements
from peftjax.models.names import Named, module
from peftjax.models.unet.family import resnet
from peftjax.models.vae.config import read_vae, write_vae
from peftjax.models.vae.model import AutoencoderKL

_PARTS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


def names(model: AutoencoderKL, base: str) -> Named:
    config = model.config
    for name in ("quant_conv", "post_quant_conv"):
        yield from module(name, name, "conv")
    for coder, way, more in (("encoder", "down", 0), ("decoder", "up", 1)):
        for name in ("conv_in", "conv_out"):
            yield from module(f"{coder}/{name}", f"{coder}.{name}", "conv")
        yield from module(f"{coder}/conv_norm_out", f"{coder}.conv_norm_out", "norm")
        for i in range(len(config.block_out_channels)):
            ours, theirs = f"{coder}/{way}_blocks_{i}", f"{coder}.{way}_blocks.{i}"
            original = f"{theirs}.{way}samplers.0.conv"
            yield from module(f"{ours}/{way}sample", original, "conv")
            for j in range(config.layers_per_block + more):
                yield from resnet(f"{ours}/resnets_{j}", f"{theirs}.resnets.{j}")
        ours, theirs = f"{coder}/mid_block", f"{coder}.mid_block"
        for j in range(2):
            yield from resnet(f"{ours}/resnets_{j}", f"{theirs}.resnets.{j}")
        ours, theirs = f"{ours}/attentions_0", f"{theirs}.attentions.0"
        yield from module(f"{ours}/group_norm", f"{theirs}.group_norm", "norm")
        for name, original in _PARTS.items():
            path = f"{ours}/attention/{name}"
            yield from module(path, f"{theirs}.{original}", "dense")


def _examples(model: AutoencoderKL, channels: int) -> tuple[Any, ...]:
    side = 2 ** (len(model.config.block_out_channels) - 1)
    shape = (1, side, side, model.config.in_channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)


VAE = Family(
    AutoencoderKL,
    called=("vae",),
    checkpoints=(
        Checkpoint(
            "AutoencoderKL",
            mark=r"encoder\.mid_block\.attentions\.0\.to_q\.weight",
            build=lambda config, shapes: AutoencoderKL(read_vae(config)),
            head=("", 0),
            heads=NOTHING,
            new=NOTHING,
            stem="diffusion_pytorch_model",
        ),
    ),
    names={"hf": names},
    examples=_examples,
    write_config=lambda model, channels: write_vae(model.config),
    placements=Placements(
        {
            "query": "attention/to_q",
            "key": "attention/to_k",
            "value": "attention/to_v",
            "output": "attention/to_out",
        },
        stack="(encoder|decoder)/mid_block/attentions",
        head=None,
    ),
    heads=Heads((), attribute=None, instead="it rebuilds images"),
    depth=lambda model: model.config.layers_per_block,
)
