"""The architecture of Llama, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftjax.models.config_json import Json, check_neutral, filled, number, wrong
from peftjax.models.rope import DEFAULT_ROPE, Rope


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture, in the names of the original's `config.json`.

    Attributes:
        vocab_size: rows of the embeddings.
        hidden_size: features per token.
        intermediate_size: hidden features of the MLP.
        num_hidden_layers: number of layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, a divisor of the query heads.
        head_dim: features per head.
        hidden_act: the MLP's activation.
        max_position_embeddings: the context of pretraining; nothing depends on it.
        rms_norm_eps: epsilon of every RMSNorm.
        rope: rotary embeddings.
        attention_bias: q, k, v, o have biases.
        mlp_bias: gate, up, down have biases.
        attention_dropout: probability of dropping an attention weight.
        tie_word_embeddings: the embedding table is the output layer too.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope: Rope = DEFAULT_ROPE
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False


def read_llama(config: Json) -> LlamaConfig:
    """Return the fields in a Llama's `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    check_neutral(config)
    heads = number(config, "num_attention_heads", LlamaConfig.num_attention_heads)
    width = number(config, "hidden_size", LlamaConfig.hidden_size)
    defaults = LlamaConfig(
        num_key_value_heads=heads, head_dim=width // heads, rope=_read_rope(config)
    )
    return filled(defaults, config, skip=("rope",))


def write_llama(config: LlamaConfig) -> dict[str, Any]:
    """Return what `read_llama` reads."""
    fields = dataclasses.asdict(config)
    rope = fields.pop("rope")
    used = {"default": [], "linear": ["factor"]}.get(rope["kind"], list(rope)[2:])
    parameters = {"rope_type": rope["kind"], "rope_theta": rope["theta"]}
    parameters |= {name: rope[name] for name in used}
    return {**fields, "model_type": "llama", "rope_parameters": parameters}


def _read_rope(config: Json) -> Rope:
    """Read `rope_parameters`, or `rope_theta` and `rope_scaling` of older files."""
    both = (config.get("rope_parameters"), config.get("rope_scaling"))
    scaling = next((value for value in both if value not in (None, {})), {})
    if not isinstance(scaling, Mapping):
        raise wrong("rope_parameters", "an object", {"rope_parameters": scaling})
    values = {"rope_theta": config.get("rope_theta"), **scaling}
    check_neutral(values)
    theta = number(values, "rope_theta", Rope.theta)
    if theta <= 0:
        raise wrong("rope_theta", "more than 0", values)
    values["rope_type"] = kind = values.get("rope_type", values.get("type", "default"))
    names = {
        "default": [],
        "linear": ["factor"],
        "llama3": [field.name for field in dataclasses.fields(Rope)[2:]],
    }.get(kind if isinstance(kind, str) else "")
    if names is None:
        raise wrong("rope_type", "default, linear or llama3", values)
    fields = {}
    for name in names:
        fields[name] = number(values, name, getattr(Rope, name))
        if values.get(name) is None or fields[name] <= 0:
            raise wrong(name, f"more than 0 for rope type {kind}", values)
    if fields.get("low_freq_factor", 0) >= fields.get("high_freq_factor", 1):
        raise wrong("high_freq_factor", "more than low_freq_factor", values)
    return Rope(theta=theta, kind=kind, **fields)  # pyright: ignore
