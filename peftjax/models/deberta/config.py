"""The architecture of DeBERTa-v3, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from peftjax.models.config_json import Json, check_neutral, filled, number, wrong
from peftjax.models.files import CheckpointError


@dataclass(frozen=True)
class DebertaConfig:
    """The architecture, in the names of the original's `config.json`.

    The defaults are those of DeBERTa-v3-base.

    Attributes:
        vocab_size: rows of the word embeddings.
        hidden_size: features per token.
        num_hidden_layers: number of layers.
        num_attention_heads: attention heads.
        intermediate_size: hidden features of the MLP.
        max_position_embeddings: rows of the position table, where there is one.
        type_vocab_size: rows of the token-type table; 0 for none.
        embedding_size: features of the tables; None for `hidden_size`. Where it is
            another, a projection follows.
        hidden_act: the MLP's activation.
        layer_norm_eps: epsilon of every LayerNorm.
        hidden_dropout_prob: probability of dropping a feature.
        attention_probs_dropout_prob: probability of dropping an attention weight.
        position_biased_input: add a table of absolute positions to the words.
        relative_attention: relative positions take part in attention.
        pos_att_type: which terms: `"c2p"`, content to position, `"p2c"`, or both. The
            scale of attention counts them, with `relative_attention` or without.
        share_att_key: relative positions go through the query and key of the content,
            not through matrices of their own.
        position_buckets: distances are told apart by so many buckets on either side,
            the far ones on a logarithmic scale; 0: every distance has its own.
        max_relative_positions: the largest distance told apart; 0 for
            `max_position_embeddings`.
        norm_rel_ebd: `"layer_norm"` on the relative table, or `"none"`.
        pooler_hidden_act: the pooler's activation.
        pooler_dropout: the pooler's dropout, on its input.
        cls_dropout: dropout before the classifier; None for `hidden_dropout_prob`.
    """

    vocab_size: int = 128100
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    embedding_size: int | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-7
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    position_biased_input: bool = False
    relative_attention: bool = True
    pos_att_type: tuple[str, ...] = ("c2p", "p2c")
    share_att_key: bool = True
    position_buckets: int = 256
    max_relative_positions: int = 0
    norm_rel_ebd: Literal["layer_norm", "none"] = "layer_norm"
    pooler_hidden_act: str = "gelu"
    pooler_dropout: float = 0.0
    cls_dropout: float | None = None

    @property
    def max_tokens(self) -> int | None:
        """The longest input, in tokens; None where nothing limits it."""
        return self.max_position_embeddings if self.position_biased_input else None

    @property
    def max_distance(self) -> int:
        """The largest distance told apart."""
        return self.max_relative_positions or self.max_position_embeddings

    @property
    def span(self) -> int:
        """Half the rows of the relative table."""
        return self.position_buckets or self.max_distance


# What a `config.json` means that says nothing.
_ABSENT = DebertaConfig(
    hidden_size=1536,
    num_hidden_layers=24,
    num_attention_heads=24,
    intermediate_size=6144,
    position_biased_input=True,
    relative_attention=False,
    share_att_key=False,
)
_SPECIAL = (
    "embedding_size",
    "max_relative_positions",
    "norm_rel_ebd",
    "pos_att_type",
    "position_buckets",
    "type_vocab_size",
)


def read_deberta(config: Json, shapes: Any) -> DebertaConfig:
    """Return the fields in a DeBERTa-v2's or v3's `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute, DeBERTa-v2's convolution for one.
    """
    check_neutral(config)
    plain = {name: value for name, value in config.items() if name not in _SPECIAL}
    found = filled(_ABSENT, plain)
    size = number(config, "embedding_size", found.hidden_size)
    found = dataclasses.replace(
        found,
        pos_att_type=_terms(config),
        position_buckets=_positive(config, "position_buckets"),
        max_relative_positions=_positive(config, "max_relative_positions"),
        norm_rel_ebd=_norm(config),
        type_vocab_size=_positive(config, "type_vocab_size"),
        embedding_size=None if size == found.hidden_size else size,
    )
    _check(config, found, shapes)
    return found


def write_deberta(config: DebertaConfig) -> dict[str, Any]:
    """Return what `read_deberta` reads."""
    return {
        **dataclasses.asdict(config),
        "embedding_size": config.embedding_size or config.hidden_size,
        "model_type": "deberta-v2",
        "pooler_hidden_size": config.hidden_size,
        "pos_att_type": "|".join(config.pos_att_type),
    }


def _check(config: Json, found: DebertaConfig, shapes: Any) -> None:
    """Raise CheckpointError where the model here would compute something else."""
    if _positive(config, "conv_kernel_size"):
        expected = "0: the convolution of DeBERTa-v2 is not supported, v3 has none"
        raise wrong("conv_kernel_size", expected, config)
    if found.position_buckets == 1:
        raise wrong("position_buckets", "0 or at least 2", config)
    sizes = {
        "attention_head_size": found.hidden_size // found.num_attention_heads,
        "pooler_hidden_size": found.hidden_size,
    }
    for name, size in sizes.items():
        if config.get(name, size) not in (size, None):
            raise wrong(name, f"{size}, which follows from hidden_size", config)
    # HF leaves these weights out without an error, and computes something else.
    normed = any(name.endswith("encoder.LayerNorm.weight") for name in shapes)
    if normed and found.norm_rel_ebd == "none":
        raise wrong("norm_rel_ebd", "layer_norm, whose weights the file has", config)


def _positive(config: Json, name: str) -> int:
    """Return an integer of which all values below 1 mean 0."""
    value = config.get(name)
    if value is None or (type(value) is int and value <= 0):
        return 0
    return number(config, name, 0)


def _terms(config: Json) -> tuple[str, ...]:
    """Read `pos_att_type`, a list or words between bars, in an order of ours."""
    value = config.get("pos_att_type")
    value = [] if value is None else value
    words = value.lower().split("|") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise wrong("pos_att_type", "a list or words between bars", config)
    terms = {word.strip() for word in words} - {""}
    if unknown := terms - {"c2p", "p2c"}:
        raise CheckpointError(
            f"config.json: pos_att_type: expected c2p, p2c or both, found also "
            f"{', '.join(sorted(unknown))}"
        )
    return tuple(sorted(terms))


def _norm(config: Json) -> Literal["layer_norm", "none"]:
    value = config.get("norm_rel_ebd")
    value = "none" if value is None else value
    words = [word.strip() for word in str(value).lower().split("|")]
    if not isinstance(value, str) or not set(words) <= {"layer_norm", "none", ""}:
        raise wrong("norm_rel_ebd", "layer_norm or none", config)
    return "layer_norm" if "layer_norm" in words else "none"
