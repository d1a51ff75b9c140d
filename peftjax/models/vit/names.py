"""The names of a ViT's parameters: HF's, timm's, those of Google's `.npz` files."""

from __future__ import annotations

from collections.abc import Mapping

from peftjax.models.names import Kind, Named, Source, module
from peftjax.models.vit.model import ViT

_HF = {
    "norm1": "layernorm_before",
    "attn/proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
}
_HF_QKV = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))
_HF5 = {
    "norm1": "layernorm_before",
    "attn/proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}
_HF5_QKV = tuple(f"attention.{name}_proj" for name in "qkv")
_TIMM = {
    "norm1": "norm1",
    "attn/proj": "attn.proj",
    "norm2": "norm2",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}


def hf(model: ViT, base: str) -> Named:
    yield from _outside(base)
    for i in range(model.depth):
        yield from _block(model, i, f"{base}encoder.layer.{i}", _HF, _HF_QKV)


def hf5(model: ViT, base: str) -> Named:
    yield from _outside(base)
    for i in range(model.depth):
        yield from _block(model, i, f"{base}layers.{i}", _HF5, _HF5_QKV)


def timm(model: ViT, base: str) -> Named:
    yield from module("cls_token", "cls_token", "array")
    yield from module("pos_embed", "pos_embed", "array")
    yield from module("patch_embed", "patch_embed.proj", "conv")
    for i in range(model.depth):
        yield from _block(model, i, f"blocks.{i}", _TIMM, ("attn.qkv",))
    yield from module("norm", "norm", "norm")
    yield from module("head", "head", "dense")


def _outside(base: str) -> Named:
    embeddings = f"{base}embeddings"
    projection = f"{embeddings}.patch_embeddings.projection"
    yield from module("cls_token", f"{embeddings}.cls_token", "array")
    yield from module("pos_embed", f"{embeddings}.position_embeddings", "array")
    yield from module("patch_embed", projection, "conv")
    yield from module("norm", f"{base}layernorm", "norm")
    yield from module("head", "classifier", "dense")


def _block(
    model: ViT, i: int, layer: str, others: Mapping[str, str], qkv: tuple[str, ...]
) -> Named:
    """Yield one block, whose q, k, v the original has in three matrices or in one."""
    ours = f"blocks_{i}"
    originals = tuple(f"{layer}.{name}" for name in qkv)
    if model.fused_qkv:
        yield from module(f"{ours}/attn/qkv", originals, "dense")
    else:
        for j, name in enumerate("qkv"):
            own, part = (originals[j], (0, 1)) if len(qkv) == 3 else (originals, (j, 3))
            yield from module(f"{ours}/attn/{name}", own, "dense", part)
    for path, original in others.items():
        kind: Kind = "norm" if path.startswith("norm") else "dense"
        yield from module(f"{ours}/{path}", f"{layer}.{original}", kind)


def npz(model: ViT, base: str) -> Named:
    """Google's files hold Flax layouts, with heads as an axis: `[D, H, d]`."""
    yield from _flax("cls_token", "cls", "array")
    yield from _flax("pos_embed", "Transformer/posembed_input/pos_embedding", "array")
    yield from _flax("patch_embed", "embedding", "conv")
    for i in range(model.depth):
        ours, theirs = f"blocks_{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        yield from _flax_attention(model, f"{ours}/attn", attention)
        yield from _flax(f"{ours}/norm1", f"{theirs}/LayerNorm_0", "norm")
        yield from _flax(f"{ours}/norm2", f"{theirs}/LayerNorm_2", "norm")
        yield from _flax(f"{ours}/mlp/fc1", f"{theirs}/MlpBlock_3/Dense_0", "dense")
        yield from _flax(f"{ours}/mlp/fc2", f"{theirs}/MlpBlock_3/Dense_1", "dense")
    yield from _flax("norm", "Transformer/encoder_norm", "norm")
    yield from _flax("head", "head", "dense")


def _flax(ours: str, theirs: str, kind: Kind) -> Named:
    for path, source in module(ours, theirs, kind):
        name = theirs + path.removeprefix(ours)
        yield path, Source((name,), tuple(range(len(source.order))), kind=kind)


def _flax_attention(model: ViT, ours: str, theirs: str) -> Named:
    width, heads = model.width, model.num_heads
    size = width // heads
    names = [f"{theirs}/{name}" for name in ("query", "key", "value")]
    separate = zip("qkv", ([name] for name in names))
    for path, members in [("qkv", names)] if model.fused_qkv else separate:
        kernels = tuple(f"{name}/kernel" for name in members)
        biases = tuple(f"{name}/bias" for name in members)
        shape = (width, heads, size)
        yield f"{ours}/{path}/kernel", Source(kernels, (0, 1), shape=shape)
        yield f"{ours}/{path}/bias", Source(biases, (0,), shape=shape[1:])
    out = Source((f"{theirs}/out/kernel",), (0, 1), shape=(heads, size, width))
    yield f"{ours}/proj/kernel", out
    yield f"{ours}/proj/bias", Source((f"{theirs}/out/bias",), (0,))
