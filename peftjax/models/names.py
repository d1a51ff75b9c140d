"""Where each parameter of ours lies in a checkpoint, both ways.

One table per family. The loader, the saver and the import of adapter files all read
these, and nothing else knows a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from peftjax.models.bert import Bert
from peftjax.models.clip import Clip
from peftjax.models.clip_names import clip
from peftjax.models.deberta import Deberta
from peftjax.models.deberta_names import deberta
from peftjax.models.llama import Llama
from peftjax.models.vit import ViT

Kind = Literal["dense", "norm", "embedding", "conv", "array", "vector", "scalar"]
Layout = Literal["hf", "hf5", "timm", "npz"]
Model = Bert | Clip | Deberta | Llama | ViT

_Table = tuple[tuple[str, str, Kind], ...]

# Name of ours -> name in torch's modules, order of torch's axes in ours.
_TORCH_LEAVES: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "dense": {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))},
    "norm": {"scale": ("weight", (0,)), "bias": ("bias", (0,))},
    "embedding": {"embedding": ("weight", (0, 1))},
    "conv": {"kernel": ("weight", (2, 3, 1, 0)), "bias": ("bias", (0,))},
}

# Bare parameters, by their number of axes.
_ARRAYS = {"array": (0, 1, 2), "vector": (0,), "scalar": ()}

_BERT_LAYER: _Table = (
    ("attention/query", "attention.self.query", "dense"),
    ("attention/key", "attention.self.key", "dense"),
    ("attention/value", "attention.self.value", "dense"),
    ("attention/output", "attention.output.dense", "dense"),
    ("attention/norm", "attention.output.LayerNorm", "norm"),
    ("intermediate", "intermediate.dense", "dense"),
    ("output", "output.dense", "dense"),
    ("norm", "output.LayerNorm", "norm"),
)
_LLAMA_LAYER: _Table = (
    ("input_layernorm", "input_layernorm", "norm"),
    ("self_attn/q_proj", "self_attn.q_proj", "dense"),
    ("self_attn/k_proj", "self_attn.k_proj", "dense"),
    ("self_attn/v_proj", "self_attn.v_proj", "dense"),
    ("self_attn/o_proj", "self_attn.o_proj", "dense"),
    ("post_attention_layernorm", "post_attention_layernorm", "norm"),
    ("mlp/gate_proj", "mlp.gate_proj", "dense"),
    ("mlp/up_proj", "mlp.up_proj", "dense"),
    ("mlp/down_proj", "mlp.down_proj", "dense"),
)
_VIT_HF_LAYER: _Table = (
    ("norm1", "layernorm_before", "norm"),
    ("attn/proj", "attention.output.dense", "dense"),
    ("norm2", "layernorm_after", "norm"),
    ("mlp/fc1", "intermediate.dense", "dense"),
    ("mlp/fc2", "output.dense", "dense"),
)
_VIT_HF5_LAYER: _Table = (
    ("norm1", "layernorm_before", "norm"),
    ("attn/proj", "attention.o_proj", "dense"),
    ("norm2", "layernorm_after", "norm"),
    ("mlp/fc1", "mlp.fc1", "dense"),
    ("mlp/fc2", "mlp.fc2", "dense"),
)
_VIT_TIMM_LAYER: _Table = (
    ("norm1", "norm1", "norm"),
    ("attn/proj", "attn.proj", "dense"),
    ("norm2", "norm2", "norm"),
    ("mlp/fc1", "mlp.fc1", "dense"),
    ("mlp/fc2", "mlp.fc2", "dense"),
)


@dataclass(frozen=True)
class Module:
    """A module of ours and what holds it in the original.

    Attributes:
        path: ours, with unrolled layers: `layers_0/attention/query`.
        original: the original's names:
            `("bert.encoder.layer.0.attention.self.query",)`; several lie side by side
            along our output axis.
        kind: what it is; `"array"`, `"vector"` and `"scalar"` are bare parameters.
        part: `(i, n)`: ours is the i-th of n equal parts of the original's output axis.
    """

    path: str
    original: tuple[str, ...]
    kind: Kind
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Source:
    """Where one parameter lies in a checkpoint.

    Attributes:
        tensors: names in the file; several are joined along our last axis.
        order: the original's axes in our order: `(1, 0)` is a transposition.
        part: as in `Module`, of our last axis.
        shape: the shape in the file, where it is more than ours reordered.
    """

    tensors: tuple[str, ...]
    order: tuple[int, ...]
    part: tuple[int, int] = (0, 1)
    shape: tuple[int, ...] | None = None


def sources(
    model: Model, layout: Layout = "hf", *, prefix: bool = True
) -> dict[str, Source]:
    """Return where every parameter of the unrolled model lies, by our path.

    Some need not exist: biases that the model does not have are listed as well.

    Args:
        model: the model.
        layout: `"hf"`, as in checkpoints; `"hf5"`, the modules of transformers 5 in
            memory, as in adapter files; for a ViT also `"timm"` and `"npz"`, Google's
            files.
        prefix: names begin with the family's name, as in a model with a head.
    """
    if layout == "npz":
        assert isinstance(model, ViT)
        return dict(_vit_npz(model))
    return {
        f"{module.path}/{leaf}".removesuffix("/"): Source(
            tuple(f"{name}.{theirs}".removesuffix(".") for name in module.original),
            order,
            module.part,
        )
        for module in modules(model, layout, prefix=prefix)
        for leaf, (theirs, order) in _leaves(module.kind).items()
    }


def modules(
    model: Model, layout: Layout = "hf", *, prefix: bool = True
) -> tuple[Module, ...]:
    """Return the modules of the unrolled model with their originals in torch.

    >>> from peftjax.models.configs import LlamaConfig
    >>> modules(Llama(LlamaConfig(num_hidden_layers=1)))[2].original
    ('model.layers.0.self_attn.q_proj',)
    """
    if isinstance(model, Bert):
        return tuple(_bert(model, prefix))
    if isinstance(model, Clip):
        return _single(clip(model.config))
    if isinstance(model, Deberta):
        base = base_prefix(model) if prefix else ""
        return _single(deberta(model.config, base))
    if isinstance(model, Llama):
        return tuple(_llama(model, prefix))
    if layout == "timm":
        return tuple(_vit_timm(model))
    return tuple(_vit_hf(model, prefix, renamed=layout == "hf5"))


def base_prefix(model: Model) -> str:
    """Return what the original's names begin with where the model has a head."""
    if isinstance(model, Bert):
        return "roberta." if model.config.roberta else "bert."
    prefixes = {Clip: "", Deberta: "deberta.", Llama: "model.", ViT: "vit."}
    return prefixes[type(model)]


def _leaves(kind: Kind) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {"": ("", _ARRAYS[kind])} if kind in _ARRAYS else _TORCH_LEAVES[kind]


def _single(rows: Iterator[tuple[str, str, Kind]]) -> tuple[Module, ...]:
    return tuple(Module(path, (original,), kind) for path, original, kind in rows)


def _bert(model: Bert, prefix: bool) -> Iterator[Module]:
    base = base_prefix(model) if prefix else ""
    for name in ("word", "position", "token_type"):
        name = f"{name}_embeddings"
        original = f"{base}embeddings.{name}"
        yield Module(f"embeddings/{name}", (original,), "embedding")
    yield Module("embeddings/norm", (f"{base}embeddings.LayerNorm",), "norm")
    for i in range(model.config.num_hidden_layers):
        for ours, theirs, kind in _BERT_LAYER:
            original = f"{base}encoder.layer.{i}.{theirs}"
            yield Module(f"layers_{i}/{ours}", (original,), kind)
    yield Module("pooler", (f"{base}pooler.dense",), "dense")
    for part in ("dense", "out_proj") if model.config.roberta else ("",):
        ours = f"classifier/{part}".removesuffix("/")
        yield Module(ours, (ours.replace("/", "."),), "dense")


def _llama(model: Llama, prefix: bool) -> Iterator[Module]:
    base = base_prefix(model) if prefix else ""
    yield Module("embed_tokens", (f"{base}embed_tokens",), "embedding")
    for i in range(model.config.num_hidden_layers):
        for ours, theirs, kind in _LLAMA_LAYER:
            yield Module(f"layers_{i}/{ours}", (f"{base}layers.{i}.{theirs}",), kind)
    yield Module("norm", (f"{base}norm",), "norm")
    yield Module("lm_head", ("lm_head",), "dense")
    yield Module("score", ("score",), "dense")


def _vit_hf(model: ViT, prefix: bool, renamed: bool) -> Iterator[Module]:
    base = base_prefix(model) if prefix else ""
    embeddings = f"{base}embeddings"
    projection = f"{embeddings}.patch_embeddings.projection"
    yield Module("cls_token", (f"{embeddings}.cls_token",), "array")
    yield Module("pos_embed", (f"{embeddings}.position_embeddings",), "array")
    yield Module("patch_embed", (projection,), "conv")
    for i in range(model.depth):
        layer = f"{base}layers.{i}" if renamed else f"{base}encoder.layer.{i}"
        names = ("q_proj", "k_proj", "v_proj") if renamed else ("query", "key", "value")
        attention = f"{layer}.attention" if renamed else f"{layer}.attention.attention"
        qkv = tuple(f"{attention}.{name}" for name in names)
        if model.fused_qkv:
            yield Module(f"blocks_{i}/attn/qkv", qkv, "dense")
        for ours, original in zip("" if model.fused_qkv else "qkv", qkv):
            yield Module(f"blocks_{i}/attn/{ours}", (original,), "dense")
        for ours, theirs, kind in _VIT_HF5_LAYER if renamed else _VIT_HF_LAYER:
            yield Module(f"blocks_{i}/{ours}", (f"{layer}.{theirs}",), kind)
    yield Module("norm", (f"{base}layernorm",), "norm")
    yield Module("head", ("classifier",), "dense")


def _vit_timm(model: ViT) -> Iterator[Module]:
    yield Module("cls_token", ("cls_token",), "array")
    yield Module("pos_embed", ("pos_embed",), "array")
    yield Module("patch_embed", ("patch_embed.proj",), "conv")
    for i in range(model.depth):
        qkv = (f"blocks.{i}.attn.qkv",)
        if model.fused_qkv:
            yield Module(f"blocks_{i}/attn/qkv", qkv, "dense")
        for part, ours in enumerate("" if model.fused_qkv else "qkv"):
            yield Module(f"blocks_{i}/attn/{ours}", qkv, "dense", (part, 3))
        for ours, theirs, kind in _VIT_TIMM_LAYER:
            yield Module(f"blocks_{i}/{ours}", (f"blocks.{i}.{theirs}",), kind)
    yield Module("norm", ("norm",), "norm")
    yield Module("head", ("head",), "dense")


def _vit_npz(model: ViT) -> Iterator[tuple[str, Source]]:
    """Google's files hold Flax layouts, with heads as an axis: `[D, H, d]`."""
    width, heads = model.width, model.num_heads
    size = width // heads

    def plain(ours: str, theirs: str, kind: Kind) -> Iterator[tuple[str, Source]]:
        for leaf, (_, order) in _leaves(kind).items():
            name = f"{theirs}/{leaf}".removesuffix("/")
            yield (
                f"{ours}/{leaf}".removesuffix("/"),
                Source((name,), tuple(range(len(order)))),
            )

    yield from plain("cls_token", "cls", "array")
    yield from plain("pos_embed", "Transformer/posembed_input/pos_embedding", "array")
    yield from plain("patch_embed", "embedding", "conv")
    for i in range(model.depth):
        ours, theirs = f"blocks_{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        names = [f"{attention}/{name}" for name in ("query", "key", "value")]
        separate = zip("qkv", ([name] for name in names))
        for path, members in [("qkv", names)] if model.fused_qkv else separate:
            kernels = tuple(f"{name}/kernel" for name in members)
            biases = tuple(f"{name}/bias" for name in members)
            shape = (width, heads, size)
            yield f"{ours}/attn/{path}/kernel", Source(kernels, (0, 1), shape=shape)
            yield f"{ours}/attn/{path}/bias", Source(biases, (0,), shape=shape[1:])
        out = Source((f"{attention}/out/kernel",), (0, 1), shape=(heads, size, width))
        yield f"{ours}/attn/proj/kernel", out
        yield f"{ours}/attn/proj/bias", Source((f"{attention}/out/bias",), (0,))
        yield from plain(f"{ours}/norm1", f"{theirs}/LayerNorm_0", "norm")
        yield from plain(f"{ours}/norm2", f"{theirs}/LayerNorm_2", "norm")
        yield from plain(f"{ours}/mlp/fc1", f"{theirs}/MlpBlock_3/Dense_0", "dense")
        yield from plain(f"{ours}/mlp/fc2", f"{theirs}/MlpBlock_3/Dense_1", "dense")
    yield from plain("norm", "Transformer/encoder_norm", "norm")
    yield from plain("head", "head", "dense")
