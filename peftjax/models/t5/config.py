"""The architecture of T5, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from peftjax.models.activations import activation
from peftjax.models.config_json import Json, check_neutral, filled, number, wrong

GATED = "gated-"


@dataclass(frozen=True)
class T5Config:
    """The architecture, in the names of the original's `config.json`.

    The defaults are those of T5-small. T5 v1.1 and FLAN-T5 have
    `feed_forward_proj="gated-gelu"`, and neither ties nor scales the output.

    Attributes:
        vocab_size: rows of the embeddings.
        d_model: features per token.
        d_kv: features per head.
        d_ff: hidden features of the MLP.
        num_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        num_heads: attention heads.
        relative_attention_num_buckets: rows of the table of relative positions.
        relative_attention_max_distance: from here on distances are in the last bucket.
        dropout_rate: probability of dropping a feature or an attention weight.
        layer_norm_epsilon: epsilon of every norm.
        feed_forward_proj: the MLP's activation; `"gated-"` and its name: one matrix
            more, gated by it. `"gated-gelu"` is the approximation by a tanh.
        tie_word_embeddings: the embedding table is the output layer too.
        scale_decoder_outputs: what enters the output layer is divided by the root of
            `d_model`.
        pad_token_id: the token of padding.
        decoder_start_token_id: the token that every target begins behind.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    pad_token_id: int = 0
    decoder_start_token_id: int = 0

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.feed_forward_proj.startswith(GATED)

    @property
    def hidden_act(self) -> str:
        """The name of the MLP's activation."""
        if self.feed_forward_proj == "gated-gelu":
            return "gelu_new"
        return self.feed_forward_proj.removeprefix(GATED)


def read_t5(config: Json, tensors: Collection[str]) -> T5Config:
    """Return the fields in a `config.json`.

    transformers 4 scales what it ties, and ties what does not say otherwise. Files of
    transformers 5 say apart whether to scale, and tie where there is no output layer.

    Args:
        config: what the file says.
        tensors: names of the tensors beside it.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    check_neutral(config)
    if config.get("is_encoder_decoder") is False:
        raise wrong("is_encoder_decoder", "true: no encoder is built alone", config)
    # Read on their own: no number, and a default that depends on another.
    own = ("feed_forward_proj", "num_decoder_layers")
    found = filled(T5Config(), config, skip=own)
    tied = scaled = found.tie_word_embeddings
    if config.get("scale_decoder_outputs") is not None:
        tied, scaled = "lm_head.weight" not in tensors, found.scale_decoder_outputs
    found = dataclasses.replace(
        found,
        feed_forward_proj=_projection(config),
        num_decoder_layers=number(config, "num_decoder_layers", found.num_layers),
        tie_word_embeddings=tied,
        scale_decoder_outputs=scaled,
    )
    rows, most = (
        found.relative_attention_num_buckets,
        found.relative_attention_max_distance,
    )
    if rows < 4:
        raise wrong("relative_attention_num_buckets", "at least 4", config)
    if most <= rows // 2:
        expected = f"more than half of {rows} buckets"
        raise wrong("relative_attention_max_distance", expected, config)
    for name, value in _derived(found).items():
        if config.get(name, value) not in (value, None):
            expected = f"{value!r}, which follows from feed_forward_proj"
            raise wrong(name, expected, config)
    return found


def write_t5(config: T5Config) -> dict[str, Any]:
    """Return what `read_t5` reads."""
    return {
        **dataclasses.asdict(config),
        **_derived(config),
        "is_encoder_decoder": True,
        "model_type": "t5",
    }


def _derived(config: T5Config) -> dict[str, Any]:
    return {"dense_act_fn": config.hidden_act, "is_gated_act": config.gated}


def _projection(config: Json) -> str:
    value = config.get("feed_forward_proj")
    if value is None:
        return T5Config.feed_forward_proj
    try:
        activation(dataclasses.replace(T5Config(), feed_forward_proj=value).hidden_act)
    except (AttributeError, TypeError, ValueError) as error:
        expected = f"an activation, {GATED!r} before it or not: {error}"
        raise wrong("feed_forward_proj", expected, config) from error
    return value
