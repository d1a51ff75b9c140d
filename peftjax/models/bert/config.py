"""The architecture of BERT and RoBERTa, and its `config.json`, both ways."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from peftjax.models.config_json import Json, check_neutral, filled


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
        xlm: a RoBERTa of many languages (XLM-R): the same, but for the files' names.
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
    xlm: bool = False

    @property
    def max_tokens(self) -> int:
        """The longest input, in tokens."""
        unused = self.pad_token_id + 1 if self.roberta else 0
        return self.max_position_embeddings - unused


def read_bert(config: Json) -> BertConfig:
    """Return the fields in a BERT's or RoBERTa's `config.json`.

    Raises:
        CheckpointError: a value is of another type or out of range, or asks for what
            the model here does not compute.
    """
    check_neutral(config)
    kind = str(config.get("model_type"))
    roberta, xlm = kind.endswith("roberta"), kind.startswith("xlm")
    defaults = BertConfig(roberta=roberta, xlm=xlm, pad_token_id=int(roberta))
    return filled(defaults, config, skip=("roberta", "xlm"))


def write_bert(config: BertConfig) -> dict[str, Any]:
    """Return what `read_bert` reads."""
    fields = dataclasses.asdict(config)
    roberta, xlm = fields.pop("roberta"), fields.pop("xlm")
    kind = "xlm-" * xlm + ("roberta" if roberta else "bert")
    return {**fields, "model_type": kind}
