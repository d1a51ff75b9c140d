"""CLIP, and classifiers of images made from it."""

from peftjax.models.clip.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from peftjax.models.clip.model import Clip, ClipText
from peftjax.models.clip.zero_shot import (
    ClipClassifier,
    class_embeddings,
    image_classifier,
    zero_shot,
)

__all__ = [
    "Clip",
    "ClipClassifier",
    "ClipConfig",
    "ClipText",
    "ClipTextConfig",
    "ClipVisionConfig",
    "class_embeddings",
    "image_classifier",
    "zero_shot",
]
