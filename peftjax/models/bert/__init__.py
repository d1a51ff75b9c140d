"""BERT, RoBERTa and MiniLM."""

from peftjax.models.bert.config import BertConfig
from peftjax.models.bert.model import Bert, mean_pool

__all__ = ["Bert", "BertConfig", "mean_pool"]
