"""Pretrained models in plain Linen, from the files people have."""

from peftjax.models.bert import Bert, mean_pool
from peftjax.models.clip import Clip
from peftjax.models.clip_configs import ClipConfig, ClipTextConfig, ClipVisionConfig
from peftjax.models.configs import BertConfig, LlamaConfig
from peftjax.models.deberta import Deberta
from peftjax.models.deberta_configs import DebertaConfig
from peftjax.models.encoder import Encoding
from peftjax.models.files import CheckpointError
from peftjax.models.generate import generate
from peftjax.models.llama import Cache, Llama
from peftjax.models.lm_loss import lm_loss
from peftjax.models.loading import load
from peftjax.models.rope import Rope
from peftjax.models.saving import save
from peftjax.models.vit import ViT, resize_pos_embed, vit
from peftjax.models.zero_shot import (
    ClipClassifier,
    class_embeddings,
    image_classifier,
    zero_shot,
)

__all__ = [
    "Bert",
    "BertConfig",
    "Cache",
    "CheckpointError",
    "Clip",
    "ClipClassifier",
    "ClipConfig",
    "ClipTextConfig",
    "ClipVisionConfig",
    "Deberta",
    "DebertaConfig",
    "Encoding",
    "Llama",
    "LlamaConfig",
    "Rope",
    "ViT",
    "class_embeddings",
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
