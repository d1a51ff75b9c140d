"""Trainable tokens in the torch library's files."""

from __future__ import annotations

from typing import Any

from peftjax.core.method import Layer, Method
from peftjax.hub.torch.codec import Codec, Entry, Methods, Tensor, uniform
from peftjax.hub.torch.config import ANY, Field
from peftjax.methods.trainable_tokens import TrainableTokens


def _tokens(found: Any) -> bool:
    return isinstance(found, list) and all(type(token) is int for token in found)


_FIELDS: dict[str, Field] = {
    "init_weights": ANY,
    "token_indices": Field([], "a list of whole numbers", _tokens),
}


def _read(entry: Entry) -> Method:
    return TrainableTokens(tuple(entry.config["token_indices"]))


def _tensors(method: TrainableTokens, layer: Layer) -> dict[str, Tensor]:
    shape = (len(method.tokens), layer.d_out)
    return {"rows": Tensor("trainable_tokens_delta", shape)}


def _write(methods: Methods, biased: set[str]) -> dict[str, Any]:
    return {"token_indices": list(uniform(methods, "tokens"))}


CODEC = Codec(
    "TRAINABLE_TOKENS", ("embedding",), _FIELDS, _read, _tensors, _write, tied=True
)
