"""A tiny Llama and a tokenizer for it."""

import json

import jax
import numpy as np

from peftjax.data.tokenizer import load_tokenizer
from peftjax.models import Llama, LlamaConfig
from tests.helpers.model_cases import DATA

FOLDER = DATA / "llm"
SETTINGS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def tiny_llama(**fields):
    """Return a model and random variables."""
    model = Llama(LlamaConfig(**SETTINGS), **fields)
    init = jax.jit(model.init)
    return model, init(jax.random.key(0), np.ones((1, 2), np.int32))


def tokenizer():
    """Return the tokenizer of 47 tokens; `tests/references` makes it."""
    return load_tokenizer(FOLDER)


def references():
    """Return what `transformers` made of questions and prompts."""
    return json.loads((FOLDER / "references.json").read_text())
