"""The architectures of BERT and Llama, and their `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from peftjax.models.activations import activation
from peftjax.models.files import CheckpointError
from peftjax.models.rope import DEFAULT_ROPE, Rope

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class BertConfig:
    """The architecture, in the names of the original's `config.json`.

    Attributes:
        vocab_size: rows of the word embeddings.
        hidden_size: features per token.
        num_hidden_layers: number of layers.
        num_attention_heads: attention heads.
        intermediate_size: hidden features of the MLP.
        max_position_embeddings: rows of the position table; RoBERTa's includes the
            `pad_token_id + 1` rows that no token uses.
        type_vocab_size: rows of the token-type table.
        hidden_act: the MLP's activation.
        layer_norm_eps: epsilon of every LayerNorm.
        hidden_dropout_prob: probability of dropping a feature.
        attention_probs_dropout_prob: probability of dropping an attention weight.
        classifier_dropout: the head's dropout; None for `hidden_dropout_prob`.
        pad_token_id: the id from which RoBERTa counts its positions.
        roberta: RoBERTa's positions and head.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    pad_token_id: int = 0
    roberta: bool = False

    @property
    def max_tokens(self) -> int:
        """The longest input, in tokens."""
        unused = self.pad_token_id + 1 if self.roberta else 0
        return self.max_position_embeddings - unused


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


Json = Mapping[str, Any]
T = TypeVar("T", bound="DataclassInstance")

# What the models here do not compute: the values with which they are the original.
_NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "partial_rotary_factor": 1.0,
    "position_embedding_type": "absolute",
    "qkv_bias": True,
    "quantization_config": None,
}


def read_bert(config: Json, *, roberta: bool) -> BertConfig:
    """Return the fields in a BERT's or RoBERTa's `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    check_neutral(config)
    return filled(BertConfig(roberta=roberta, pad_token_id=int(roberta)), config)


def read_llama(config: Json) -> LlamaConfig:
    """Return the fields in a Llama's `config.json`; raises as `read_bert`."""
    check_neutral(config)
    heads = number(config, "num_attention_heads", LlamaConfig.num_attention_heads)
    width = number(config, "hidden_size", LlamaConfig.hidden_size)
    defaults = LlamaConfig(
        num_key_value_heads=heads, head_dim=width // heads, rope=_read_rope(config)
    )
    return filled(defaults, config)


def write_bert(config: BertConfig) -> dict[str, Any]:
    """Return what `read_bert` reads."""
    fields = dataclasses.asdict(config)
    return {**fields, "model_type": "roberta" if fields.pop("roberta") else "bert"}


def write_llama(config: LlamaConfig) -> dict[str, Any]:
    """Return what `read_llama` reads."""
    fields = dataclasses.asdict(config)
    rope = fields.pop("rope")
    used = {"default": [], "linear": ["factor"]}.get(rope["kind"], list(rope)[2:])
    parameters = {"rope_type": rope["kind"], "rope_theta": rope["theta"]}
    parameters |= {name: rope[name] for name in used}
    return {**fields, "model_type": "llama", "rope_parameters": parameters}


def check_neutral(config: Json) -> None:
    """Raise CheckpointError where a model asks for what those here do not compute."""
    for name, neutral in _NEUTRAL.items():
        if config.get(name, neutral) not in (neutral, None):
            raise wrong(name, f"{neutral!r}, all that the models here compute", config)


def number(config: Json, name: str, default: Any) -> Any:
    """Return a number of the default's type, or the default where there is none.

    Raises:
        CheckpointError: it is of another type, a size is not positive, a rate not below
            one, or it is not finite.
    """
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(name, "a number", config)
    if isinstance(default, int):
        least = 0 if name.endswith("token_id") else 1
        if not isinstance(value, int) or not least <= value < 2**31:
            raise wrong(name, f"an integer from {least}", config)
        return value
    most = 1.0 if "dropout" in name else 1e12
    if not 0 <= value < most:
        raise wrong(name, f"at least 0 and less than {most:g}", config)
    return float(value)


def wrong(name: str, expected: str, config: Json) -> CheckpointError:
    """Return the error for a value of `config.json`."""
    found = config.get(name)
    return CheckpointError(f"config.json: {name}: expected {expected}, found {found!r}")


def filled(defaults: T, config: Json) -> T:
    """Return the defaults with what `config.json` says of their plain fields.

    Raises:
        CheckpointError: as `number`; or an activation is not known, or a flag no flag.
    """
    values = {}
    for field in dataclasses.fields(defaults):
        name, value = field.name, config.get(field.name)
        default = getattr(defaults, name)
        if value is None or name in ("roberta", "rope"):
            continue
        if name.endswith("hidden_act"):
            try:
                activation(value)
            except (TypeError, ValueError) as error:
                raise wrong(name, str(error), config) from error
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise wrong(name, "true or false", config)
        else:
            value = number(config, name, 0.0 if default is None else default)
        values[name] = value
    return dataclasses.replace(defaults, **values)


def _read_rope(config: Json) -> Rope:
    """Read `rope_parameters`, or `rope_theta` and `rope_scaling` of older files."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
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
