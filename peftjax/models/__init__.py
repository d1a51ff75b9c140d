"""Pretrained models in plain Linen, from the files people have."""

from peftjax.models.bert import Bert, mean_pool
from peftjax.models.configs import BertConfig, LlamaConfig
from peftjax.models.encoder import Encoding
from peftjax.models.files import CheckpointError
from peftjax.models.generate import generate
from peftjax.models.llama import Cache, Llama
from peftjax.models.lm_loss import lm_loss
from peftjax.models.loading import load
from peftjax.models.rope import Rope
from peftjax.models.saving import save
from peftjax.models.vit import ViT, resize_pos_embed, vit

__all__ = [
    "Bert",
    "BertConfig",
    "Cache",
    "CheckpointError",
    "Encoding",
    "Llama",
    "LlamaConfig",
    "Rope",
    "ViT",
    "generate",
    "lm_loss",
    "load",
    "mean_pool",
    "resize_pos_embed",
    "save",
    "vit",
]
