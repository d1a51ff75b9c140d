"""The architecture of CLIP, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from peftjax.models.config_json import Json, check_neutral, filled, number, wrong
from peftjax.models.files import CheckpointError

# The end of a text in the first files: there it has the largest id of all.
LARGEST_ID = 2


@dataclass(frozen=True)
class ClipVisionConfig:
    """The image tower, in the names of the original's `config.json`.

    The defaults are those of ViT-B/32.

    Attributes:
        hidden_size: features per token.
        num_hidden_layers: number of layers.
        num_attention_heads: attention heads.
        intermediate_size: hidden features of the MLP.
        image_size: height and width of the images.
        patch_size: side of a patch.
        num_channels: channels of the images.
        hidden_act: the MLP's activation; OpenAI's files have `"quick_gelu"`, some later
            ones `"gelu"`.
        layer_norm_eps: epsilon of every LayerNorm.
        attention_dropout: probability of dropping an attention weight.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class ClipTextConfig:
    """The text tower, in the names of the original's `config.json`.

    Attributes:
        vocab_size: rows of the token table.
        hidden_size: features per token.
        num_hidden_layers: number of layers.
        num_attention_heads: attention heads.
        intermediate_size: hidden features of the MLP.
        max_position_embeddings: the longest text, in tokens.
        eos_token_id: the first token with this id is the text's feature; 2, as in
            OpenAI's files, stands for the first of the largest ids.
        hidden_act: as in `ClipVisionConfig`.
        layer_norm_eps: as there.
        attention_dropout: as there.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    max_position_embeddings: int = 77
    eos_token_id: int = 49407
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0


@dataclass(frozen=True)
class ClipConfig:
    """The architecture.

    Attributes:
        vision: the image tower.
        text: the text tower.
        projection_dim: features of the space that both are projected into.
    """

    vision: ClipVisionConfig = ClipVisionConfig()
    text: ClipTextConfig = ClipTextConfig()
    projection_dim: int = 512

    @property
    def num_hidden_layers(self) -> int:
        """The layers of both towers."""
        return self.vision.num_hidden_layers + self.text.num_hidden_layers


T = TypeVar("T", ClipVisionConfig, ClipTextConfig)
_TEXT_MODELS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def read_clip(config: Json) -> ClipConfig:
    """Return the fields in a CLIP's `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    check_neutral(config)
    architectures = config.get("architectures") or ["CLIPModel"]
    if architectures != ["CLIPModel"]:
        raise wrong("architectures", "['CLIPModel'], both towers", config)
    dim = number(config, "projection_dim", ClipConfig.projection_dim)
    vision = _tower(config, "vision_config", ClipVisionConfig())
    return ClipConfig(vision, _tower(config, "text_config", ClipTextConfig()), dim)


def write_clip(config: ClipConfig) -> dict[str, Any]:
    """Return what `read_clip` reads."""
    dim = {"projection_dim": config.projection_dim}
    vision, text = dataclasses.asdict(config.vision), dataclasses.asdict(config.text)
    return {
        "model_type": "clip",
        **dim,
        "vision_config": {"model_type": "clip_vision_model", **vision, **dim},
        "text_config": {"model_type": "clip_text_model", **text, **dim},
    }


def read_clip_text(config: Json) -> ClipTextConfig:
    """Return the fields in the `config.json` of a text tower alone.

    Raises:
        CheckpointError: as `read_clip`.
    """
    check_neutral(config)
    known = [[name] for name in _TEXT_MODELS]
    if config.get("architectures", known[0]) not in known:
        raise wrong("architectures", f"one of {', '.join(_TEXT_MODELS)}", config)
    return filled(ClipTextConfig(), config)


def write_clip_text(
    config: ClipTextConfig, projection_dim: int | None
) -> dict[str, Any]:
    """Return what `read_clip_text` reads."""
    projects = projection_dim is not None
    return {
        "model_type": "clip_text_model",
        "architectures": [_TEXT_MODELS[projects]],
        **dataclasses.asdict(config),
        **({"projection_dim": projection_dim} if projects else {}),
    }


def _tower(config: Json, name: str, defaults: T) -> T:
    # Older files say the same twice, and this one decides.
    inner = config.get(f"{name}_dict")
    inner = config.get(name) if inner is None else inner
    inner = {} if inner is None else inner
    if not isinstance(inner, Mapping):
        raise wrong(name, "an object", config)
    try:
        check_neutral(inner)
        return filled(defaults, inner)
    except CheckpointError as error:
        message = str(error).removeprefix("config.json: ")
        raise CheckpointError(f"config.json: {name}: {message}") from error
