"""BERT, RoBERTa and XLM-R for loading, saving, adapter files and presets."""

from __future__ import annotations

from dataclasses import replace

from peftjax.models.bert.config import read_bert, write_bert
from peftjax.models.bert.model import Bert
from peftjax.models.config_json import Json
from peftjax.models.encoder import PARTS
from peftjax.models.family import (
    Checkpoint,
    Family,
    Placements,
    Shapes,
    text_example,
)
from peftjax.models.names import Kind, Named, module

_LAYER: tuple[tuple[str, str, Kind], ...] = (
    ("attention/query", "attention.self.query", "dense"),
    ("attention/key", "attention.self.key", "dense"),
    ("attention/value", "attention.self.value", "dense"),
    ("attention/output", "attention.output.dense", "dense"),
    ("attention/norm", "attention.output.LayerNorm", "norm"),
    ("intermediate", "intermediate.dense", "dense"),
    ("output", "output.dense", "dense"),
    ("norm", "output.LayerNorm", "norm"),
)


def names(model: Bert, base: str) -> Named:
    for table in ("word", "position", "token_type"):
        table = f"{table}_embeddings"
        yield from module(
            f"embeddings/{table}", f"{base}embeddings.{table}", "embedding"
        )
    yield from module("embeddings/norm", f"{base}embeddings.LayerNorm", "norm")
    for i in range(model.config.num_hidden_layers):
        for ours, theirs, kind in _LAYER:
            yield from module(
                f"layers_{i}/{ours}", f"{base}encoder.layer.{i}.{theirs}", kind
            )
    yield from module("pooler", f"{base}pooler.dense", "dense")
    for part in ("dense", "out_proj") if model.config.roberta else ("",):
        ours = f"classifier/{part}".removesuffix("/")
        yield from module(ours, ours.replace("/", "."), "dense")


def _build(config: Json, shapes: Shapes) -> Bert:
    pooler = any(name.endswith("pooler.dense.weight") for name in shapes)
    return Bert(read_bert(config), with_pooler=pooler)


_BUFFERS = r"(.*\.)?embeddings\.(position|token_type)_ids"
_BERT = Checkpoint(
    "bert",
    mark=r"(bert\.)?embeddings\.word_embeddings\.weight",
    build=_build,
    head=("classifier.weight", 0),
    heads=r"(classifier|qa_outputs)\..*",
    unused=rf"{_BUFFERS}|cls\..*",
    new=r"(classifier|pooler)/.*",
    prefix="bert.",
    architecture="Bert",
)
_ROBERTA = Checkpoint(
    "roberta",
    mark=r"(roberta\.)?embeddings\.word_embeddings\.weight",
    build=_build,
    head=("classifier.out_proj.weight", 0),
    heads=r"(classifier|qa_outputs)\..*",
    unused=rf"{_BUFFERS}|lm_head\..*|(roberta\.)?pooler\..*",
    new=r"classifier/.*",
    prefix="roberta.",
    architecture="Roberta",
)
_XLM = replace(_ROBERTA, name="xlm-roberta", architecture="XLMRoberta")


def _written(model: Bert) -> Checkpoint:
    if model.config.roberta:
        return _XLM if model.config.xlm else _ROBERTA
    return _BERT


BERT = Family(
    Bert,
    called=("bert", "roberta", "xlm-roberta", "minilm"),
    checkpoints=(_BERT, _ROBERTA, _XLM),
    names={"hf": names},
    examples=text_example,
    write_config=lambda model, channels: write_bert(model.config),
    placements=Placements(PARTS, prefix="prefix"),
    tokenizer="tokenizer.json",
    written_as=_written,
)
