"""DeBERTa for loading, saving, adapter files and presets."""

from __future__ import annotations

from peftjax.models.deberta.config import read_deberta, write_deberta
from peftjax.models.deberta.model import Deberta
from peftjax.models.encoder import PARTS
from peftjax.models.family import Checkpoint, Family, Placements, text_example
from peftjax.models.names import Kind, Named, module

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


def names(model: Deberta, base: str) -> Named:
    for table in ("word", "position", "token_type"):
        path = f"embeddings/{table}_embeddings"
        yield from module(path, base + path.replace("/", "."), "embedding")
    yield from module("embeddings/projection", f"{base}embeddings.embed_proj", "dense")
    yield from module("embeddings/norm", f"{base}embeddings.LayerNorm", "norm")
    table = "rel_embeddings"
    yield from module(f"relative/{table}", f"{base}encoder.{table}", "embedding")
    yield from module("relative/norm", f"{base}encoder.LayerNorm", "norm")
    for i in range(model.config.num_hidden_layers):
        layer = f"{base}encoder.layer.{i}"
        for ours, theirs, kind in _LAYER:
            yield from module(f"layers_{i}/{ours}", f"{layer}.{theirs}", kind)
    yield from module("pooler", "pooler.dense", "dense")
    yield from module("classifier", "classifier", "dense")


# Pretraining leaves absolute positions and two heads behind; the bare encoder has no
# pooler, and one without relative positions no use for their norm.
_UNUSED = (
    r"(.*\.)?embeddings\.(position|token_type)_ids|"
    r"(cls|lm_predictions|mask_predictions|pooler)\..*|"
    r"(deberta\.)?(embeddings\.position_embeddings|encoder\.LayerNorm)\..*"
)

DEBERTA = Family(
    Deberta,
    called=("deberta",),
    checkpoints=(
        Checkpoint(
            "deberta-v2",
            mark=r"(deberta\.)?embeddings\.word_embeddings\.weight",
            build=lambda config, shapes: Deberta(read_deberta(config, shapes)),
            head=("classifier.weight", 0),
            heads=r"(classifier|qa_outputs)\..*",
            unused=_UNUSED,
            new=r"(classifier|pooler)/.*",
            prefix="deberta.",
            architecture="DebertaV2",
        ),
    ),
    names={"hf": names},
    examples=text_example,
    write_config=lambda model, channels: write_deberta(model.config),
    placements=Placements(PARTS),
    tokenizer="spm.model",
)
