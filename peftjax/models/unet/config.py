"""The architecture of a conditional U-Net, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from peftjax.models.config_json import Json, converted, wrong

Down = Literal["CrossAttnDownBlock2D", "DownBlock2D"]
Up = Literal["CrossAttnUpBlock2D", "UpBlock2D"]
CROSS: Down = "CrossAttnDownBlock2D"


@dataclass(frozen=True)
class UNetConfig:
    """The architecture, in the names of the original's `config.json`.

    The defaults are those of Stable Diffusion 1.5. A level is a resolution, the finest
    first; the way up mirrors the way down.

    Attributes:
        in_channels: channels of the noisy latents.
        out_channels: channels of the prediction.
        sample_size: side of the latents it was trained on; any other is as well.
        block_out_channels: features of each level.
        down_block_types: whether each level attends.
        layers_per_block: residual blocks of each level, one less than on the way up.
        transformer_layers_per_block: layers of each transformer, of each level.
        attention_head_dim: number of heads, in spite of its name, of each level.
        cross_attention_dim: features of the context.
        use_linear_projection: transformers begin and end with a dense layer; without,
            with a convolution of one pixel.
        norm_num_groups: groups of every GroupNorm.
        norm_eps: epsilon of the GroupNorms outside of transformers.
        flip_sin_to_cos: cosines of a time come first.
        freq_shift: of the frequencies of times.
        addition_embed_type: `"text_time"`: SDXL's further condition.
        addition_time_embed_dim: features of each number of that.
        projection_class_embeddings_input_dim: features of all of it.
    """

    in_channels: int = 4
    out_channels: int = 4
    sample_size: int | None = 64
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[Down, ...] = (CROSS, CROSS, CROSS, "DownBlock2D")
    layers_per_block: int = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    def __post_init__(self) -> None:
        levels, groups = len(self.block_out_channels), self.norm_num_groups
        kinds, depth = len(self.down_block_types), self.layers_per_block
        if not 1 <= levels <= 16 or kinds != levels or not 1 <= depth < 100:
            raise ValueError(
                "expected 1 to 16 block_out_channels, as many down_block_types and 1 "
                f"to 99 layers_per_block, found {levels}, {kinds} and {depth}"
            )
        if groups < 1 or any(n < 1 or n % groups for n in self.block_out_channels):
            raise ValueError(
                f"block_out_channels: expected multiples of norm_num_groups {groups}, "
                f"found {self.block_out_channels}"
            )
        for name in ("transformer_layers_per_block", "attention_head_dim"):
            each = self.each(name)
            if len(each) != levels or not all(1 <= n < 1000 for n in each):
                raise ValueError(
                    f"{name}: expected a number, or one of each of the {levels} "
                    f"levels, found {getattr(self, name)}"
                )
        for n, heads in zip(self.block_out_channels, self.each("attention_head_dim")):
            if n % heads:
                raise ValueError(
                    f"attention_head_dim: {heads} heads do not divide {n} features"
                )
        if self.addition_embed_type and self.text_features < 1:
            raise ValueError(
                "addition_embed_type text_time: expected "
                "projection_class_embeddings_input_dim above 6 addition_time_embed_dim"
            )

    @property
    def text_features(self) -> int:
        """Features of SDXL's pooled text; six numbers of the image stand beside it."""
        whole = self.projection_class_embeddings_input_dim or 0
        return whole - 6 * (self.addition_time_embed_dim or whole)

    def each(self, name: str) -> tuple[int, ...]:
        """Return the number of each level."""
        value = getattr(self, name)
        many = isinstance(value, tuple)
        return value if many else (value,) * len(self.block_out_channels)

    def layers(self) -> tuple[int, ...]:
        """Return the layers of each level's transformers; 0: it does not attend."""
        depths = self.each("transformer_layers_per_block")
        kinds = self.down_block_types
        return tuple(n if k == CROSS else 0 for n, k in zip(depths, kinds))


# What the model here computes where the original has a choice.
_ONLY: dict[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


def read_unet(config: Json) -> UNetConfig:
    """Return the fields in a U-Net's `config.json`.

    `upcast_attention` has no part: softmax is in float32 here in any case.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    # What the original takes where the file is silent, and these defaults are not.
    absent = {"cross_attention_dim": 1280, "sample_size": None}
    found = converted(UNetConfig, {**absent, **config}, _ONLY)
    if config.get("up_block_types", ups := _ups(found)) != ups:
        raise wrong("up_block_types", f"{ups}, the mirror of the way down", config)
    return found


def _ups(config: UNetConfig) -> list[str]:
    return [kind.replace("Down", "Up") for kind in config.down_block_types[::-1]]


def write_unet(config: UNetConfig) -> dict[str, Any]:
    """Return what `read_unet` reads."""
    fields = dataclasses.asdict(config)
    names = {"_class_name": "UNet2DConditionModel", "up_block_types": _ups(config)}
    return {**_ONLY, **fields, **names}
