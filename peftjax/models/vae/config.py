"""The architecture of an autoencoder of images, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peftjax.models.config_json import Json, converted, wrong


@dataclass(frozen=True)
class VaeConfig:
    """The architecture, in the names of the original's `config.json`.

    The defaults are those of Stable Diffusion 1.5.

    Attributes:
        in_channels: channels of the images.
        out_channels: channels of the reconstruction.
        latent_channels: channels of the latents.
        sample_size: side of the images it was trained on; any other is as well.
        block_out_channels: features of each level, the finest first.
        layers_per_block: residual blocks of each level, one less than in the decoder.
        norm_num_groups: groups of every GroupNorm.
        scaling_factor: latents are multiplied by it before diffusion.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    sample_size: int = 512
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    def __post_init__(self) -> None:
        levels, groups = self.block_out_channels, self.norm_num_groups
        if not 1 <= len(levels) <= 16 or not 1 <= self.layers_per_block < 100:
            raise ValueError(
                "expected 1 to 16 block_out_channels and 1 to 99 layers_per_block, "
                f"found {len(levels)} and {self.layers_per_block}"
            )
        if groups < 1 or any(n < 1 or n % groups for n in levels):
            raise ValueError(
                f"block_out_channels: expected multiples of norm_num_groups {groups}, "
                f"found {levels}"
            )


# What the model here computes where the original has a choice.
_ONLY: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}


def _kinds(config: VaeConfig) -> dict[str, list[str]]:
    levels = len(config.block_out_channels)
    return {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def read_vae(config: Json) -> VaeConfig:
    """Return the fields in an autoencoder's `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    found = converted(VaeConfig, config, _ONLY)
    for name, kinds in _kinds(found).items():
        if config.get(name, kinds) != kinds:
            raise wrong(name, f"{kinds}, all that the model here computes", config)
    return found


def write_vae(config: VaeConfig) -> dict[str, Any]:
    """Return what `read_vae` reads."""
    fields = {**_ONLY, **dataclasses.asdict(config), **_kinds(config)}
    return {**fields, "_class_name": "AutoencoderKL"}
