"""The names of DeBERTa's modules in the original."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from peftjax.models.deberta_configs import DebertaConfig

if TYPE_CHECKING:
    from peftjax.models.names import Kind

_LAYER: tuple[tuple[str, str, Kind], ...] = (
    ("attention/query", "attention.self.query_proj", "dense"),
    ("attention/key", "attention.self.key_proj", "dense"),
    ("attention/value", "attention.self.value_proj", "dense"),
    ("attention/pos_key", "attention.self.pos_key_proj", "dense"),
    ("attention/pos_query", "attention.self.pos_query_proj", "dense"),
    ("attention/output", "attention.output.dense", "dense"),
    ("attention/norm", "attention.output.LayerNorm", "norm"),
    ("intermediate", "intermediate.dense", "dense"),
    ("output", "output.dense", "dense"),
    ("norm", "output.LayerNorm", "norm"),
)


def deberta(config: DebertaConfig, base: str) -> Iterator[tuple[str, str, Kind]]:
    """Yield path, original and kind of every module; `base` begins the original's."""
    for name in ("word", "position", "token_type"):
        name = f"embeddings/{name}_embeddings"
        yield name, base + name.replace("/", "."), "embedding"
    yield "embeddings/projection", f"{base}embeddings.embed_proj", "dense"
    yield "embeddings/norm", f"{base}embeddings.LayerNorm", "norm"
    yield "relative/rel_embeddings", f"{base}encoder.rel_embeddings", "embedding"
    yield "relative/norm", f"{base}encoder.LayerNorm", "norm"
    for i in range(config.num_hidden_layers):
        for ours, theirs, kind in _LAYER:
            yield f"layers_{i}/{ours}", f"{base}encoder.layer.{i}.{theirs}", kind
    yield "pooler", "pooler.dense", "dense"
    yield "classifier", "classifier", "dense"
