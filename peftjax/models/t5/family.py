"""T5 for loading, saving, adapter files and presets."""

from __future__ import annotations

from collections.abc import Collection

from peftjax.models.config_json import Json
from peftjax.models.family import (
    NOTHING,
    Checkpoint,
    Family,
    Head,
    Heads,
    Placements,
    text_example,
)
from peftjax.models.names import Named, module
from peftjax.models.t5.config import read_t5, write_t5
from peftjax.models.t5.model import T5

# Parts of a layer, in the order of the original, which numbers them.
_ENCODER = [("self_attn", "SelfAttention"), ("mlp", "DenseReluDense")]
_DECODER = [*_ENCODER[:1], ("cross_attn", "EncDecAttention"), *_ENCODER[1:]]


def names(model: T5, base: str) -> Named:
    config = model.config
    yield from module("shared", f"{base}shared", "embedding")
    yield from _stack("encoder", f"{base}encoder", config.num_layers, _ENCODER)
    yield from _stack("decoder", f"{base}decoder", config.num_decoder_layers, _DECODER)
    yield from module("lm_head", "lm_head", "dense")


def _stack(ours: str, theirs: str, depth: int, parts: list[tuple[str, str]]) -> Named:
    table = "relative_attention_bias"
    first = f"{theirs}.block.0.layer.0.SelfAttention.{table}"
    yield from module(f"{ours}/{table}", first, "embedding")
    for i in range(depth):
        layer = f"{ours}/layers_{i}"
        for number, (part, original) in enumerate(parts):
            place = f"{theirs}.block.{i}.layer.{number}"
            inner = ("wi", "wi_0", "wi_1", "wo") if part == "mlp" else "qkvo"
            for name in inner:
                path = f"{layer}/{part}/{name}"
                yield from module(path, f"{place}.{original}.{name}", "dense")
            yield from module(f"{layer}/{part}_norm", f"{place}.layer_norm", "norm")
    norm = "final_layer_norm"
    yield from module(f"{ours}/{norm}", f"{theirs}.{norm}", "norm")


def _language_model(config: Json, tensors: Collection[str]) -> Head:
    tied = read_t5(config, tensors).tie_word_embeddings
    return "lm" if tied or "lm_head.weight" in tensors else None


def _tied(model: T5) -> str | None:
    tied = model.head == "lm" and model.config.tie_word_embeddings
    return "shared/embedding" if tied else None


T5_FAMILY = Family(
    T5,
    called=("t5",),
    checkpoints=(
        Checkpoint(
            "t5",
            mark=r"shared\.weight|(en|de)coder\.embed_tokens\.weight",
            build=lambda config, shapes: T5(read_t5(config, shapes.keys()), head=None),
            head=("classification_head.out_proj.weight", 0),
            heads=r"(lm_head|classification_head)\..*",
            # The first files have a table that no layer reads.
            unused=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_"
            r"bias\.weight|lm_head\.weight",
            new=NOTHING,
            architecture="T5",
            other_head=_language_model,
            copies={
                "encoder.embed_tokens.weight": "shared.weight",
                "decoder.embed_tokens.weight": "shared.weight",
            },
        ),
    ),
    names={"hf": names},
    examples=text_example,
    write_config=lambda model, channels: write_t5(model.config),
    placements=Placements(
        {
            "query": "(self|cross)_attn/q",
            "key": "(self|cross)_attn/k",
            "value": "(self|cross)_attn/v",
            "output": "(self|cross)_attn/o",
            "gate": "mlp/wi_0",
            "up": "mlp/wi(_1)?",
            "down": "mlp/wo",
        },
        stack="(encoder|decoder)/layers",
        head=None,
        like="llama",
    ),
    heads=Heads(("none", "lm")),
    tokenizer="tokenizer.json",
    depth=lambda model: model.config.num_layers + model.config.num_decoder_layers,
    tied=_tied,
    seq2seq=True,
)
