"""What `experiments.benchmarks.pod_plan` compiles for a slice of a TPU pod.

`python -m experiments.benchmarks.pod_plan --topology v5e:8x8 --fsdp 64
  --config configs/pods.py:model=llama2_7b,method=hra`

Choices: `model`; `method`; `batch`, examples per chip; `tokens` of each (not for
images); `layers`, fewer than the model's to see a plan sooner. Nothing is trained and
no weights are needed. Llamas are adapted on q, k, v and o, the ViT on every linear
layer of its blocks, `sd15`, Stable Diffusion 1.5's U-Net at 512 pixels, on its
attention, at rank 8; bfloat16, with layers that are recomputed, and scanned where they
are alike.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

import peftjax as pj
from experiments.arguments import door, known
from peftjax.diffusion import NoiseSchedule, noised
from peftjax.models import UNet2DConditionModel, UNetConfig
from peftjax.models.llama.config import LlamaConfig
from peftjax.models.llama.model import Llama
from peftjax.models.lm_loss import lm_losses
from peftjax.models.rope import Rope
from peftjax.models.vit import ViT
from peftjax.presets import rules as placed
from peftjax.training.losses import Weighted, cross_entropy

_LLAMA3: Any = {
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope": Rope(theta=500000.0),
}
_WIDE: Any = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
}
# As in the config.json of each.
LLAMAS = {
    "llama2_7b": LlamaConfig(rms_norm_eps=1e-5),
    "llama2_13b": LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        rms_norm_eps=1e-5,
    ),
    "llama2_70b": LlamaConfig(
        **_WIDE, num_hidden_layers=80, num_key_value_heads=8, rms_norm_eps=1e-5
    ),
    "llama3_8b": LlamaConfig(intermediate_size=14336, **_LLAMA3),
    "llama3_70b": LlamaConfig(**_WIDE, num_hidden_layers=80, **_LLAMA3),
    # not a model that anyone has trained: the same program, small
    "llama_narrow": LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    ),
}
METHODS = {
    "lora": pj.LoRA(rank=8, alpha=16.0),
    "hra": pj.HRA(rank=8),
    "hydralora": pj.HydraLoRA(rank=8, alpha=16.0),
}
IN_LLAMA = r"layers/self_attn/(q|k|v|o)_proj/kernel"
IN_VIT = r"blocks/(attn/(qkv|proj)|mlp/fc[12])/kernel"
_BF16 = jnp.bfloat16


def next_token(apply, batch, key):
    return Weighted(*lm_losses(apply(batch["input_ids"]), batch["input_ids"]))


def class_of_image(apply, batch, key):
    return cross_entropy(apply(batch["image"]), batch["label"])


def noise(apply, batch, key):
    x, t, y = noised(NoiseSchedule(), batch["latents"], key)
    return jnp.square(apply(x, t, batch["context"]) - y).mean((1, 2, 3))


def config(
    model: str = "llama2_7b",
    method: str = "lora",
    batch: int = 1,
    tokens: int = 2048,
    layers: int = 0,
) -> ConfigDict:
    """Return a case; `example` is of one example, `batch` of one chip.

    Raises:
        UnknownName: an unknown model or method; the nearest valid one is named.
    """
    known(model, [*LLAMAS, "vit_b16", "sd15"], "model")
    adapter = METHODS[known(method, METHODS, "method")]
    options = {"scan_layers": True, "remat": True, "dtype": _BF16}
    more: tuple[Any, ...] = ()
    if model == "sd15":
        module = UNet2DConditionModel(UNetConfig(), remat=True, dtype=_BF16)
        rules = tuple(placed("unet", adapter).items())
        shapes = {
            "latents": jax.ShapeDtypeStruct((batch, 64, 64, 4), jnp.float32),
            "context": jax.ShapeDtypeStruct((batch, 77, 768), _BF16),
        }
        more = (
            jax.ShapeDtypeStruct((1,), jnp.int32),
            jax.ShapeDtypeStruct((1, 77, 768), _BF16),
        )
        loss, name = noise, "latents"
    elif model == "vit_b16":
        depth = layers or 12
        module = ViT(num_classes=100, depth=depth, **options)
        rules = ((IN_VIT, adapter), ("head/.*", pj.Full()))
        shapes = {
            "image": jax.ShapeDtypeStruct((batch, 224, 224, 3), _BF16),
            "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
        }
        loss, name = class_of_image, "image"
    else:
        fields = LLAMAS[model].__dict__
        fields = {**fields, **({"num_hidden_layers": layers} if layers else {})}
        module = Llama(LlamaConfig(**fields), **options)
        rules = ((IN_LLAMA, adapter),)
        shapes = {"input_ids": jax.ShapeDtypeStruct((batch, tokens), jnp.int32)}
        loss, name = next_token, "input_ids"
    example = jax.ShapeDtypeStruct((1, *shapes[name].shape[1:]), shapes[name].dtype)
    return ConfigDict(
        {
            "name": model,
            "method": method,
            "model": module,
            "example": (example, *more),
            "batch": shapes,
            "loss": loss,
            "rules": rules,
        }
    )


get_config = door(config)
