"""Pretrained models in plain Linen, from the files people have."""

from peftjax.models.bert import Bert, BertConfig, mean_pool
from peftjax.models.clip import (
    Clip,
    ClipClassifier,
    ClipConfig,
    ClipText,
    ClipTextConfig,
    ClipVisionConfig,
    class_embeddings,
    image_classifier,
    zero_shot,
)
from peftjax.models.deberta import Deberta, DebertaConfig
from peftjax.models.dinov2 import Dinov2, Dinov2Config
from peftjax.models.dit import DiT
from peftjax.models.encoder import Encoding
from peftjax.models.families import FAMILIES, family_of
from peftjax.models.family import Family
from peftjax.models.files import CheckpointError
from peftjax.models.generate import generate
from peftjax.models.llama import Cache, Llama, LlamaConfig
from peftjax.models.lm_loss import lm_loss
from peftjax.models.loading import load
from peftjax.models.prefix import Prefix
from peftjax.models.rope import Rope
from peftjax.models.saving import save
from peftjax.models.t5 import T5, T5Config, TargetCache
from peftjax.models.unet import (
    ControlledUNet,
    SignalEncoder,
    UNet2DConditionModel,
    UNetConfig,
)
from peftjax.models.vae import AutoencoderKL, VaeConfig
from peftjax.models.vit import ViT, resize_pos_embed, vit

__all__ = [
    "AutoencoderKL",
    "Bert",
    "BertConfig",
    "Cache",
    "CheckpointError",
    "Clip",
    "ClipClassifier",
    "ClipConfig",
    "ClipText",
    "ClipTextConfig",
    "ClipVisionConfig",
    "ControlledUNet",
    "Deberta",
    "DebertaConfig",
    "DiT",
    "Dinov2",
    "Dinov2Config",
    "Encoding",
    "FAMILIES",
    "Family",
    "Llama",
    "LlamaConfig",
    "Prefix",
    "Rope",
    "SignalEncoder",
    "T5",
    "T5Config",
    "TargetCache",
    "UNet2DConditionModel",
    "UNetConfig",
    "VaeConfig",
    "ViT",
    "class_embeddings",
    "family_of",
    "generate",
    "image_classifier",
    "lm_loss",
    "load",
    "mean_pool",
    "resize_pos_embed",
    "save",
    "vit",
    "zero_shot",
]
