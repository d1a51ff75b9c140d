"""Parameter-efficient fine-tuning for JAX and Flax: an adapter is one formula."""

from peftjax.core.adapt import Peft, adapt
from peftjax.core.affine import NotMergeable
from peftjax.core.method import Layer, Method
from peftjax.methods.full import Full
from peftjax.methods.lora import LoRA

__all__ = ["Full", "Layer", "LoRA", "Method", "NotMergeable", "Peft", "adapt"]
