"""LoRAFA: LoRA whose first factor stays as it was drawn.

Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
Fine-tuning", arXiv 2308.03303.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftjax.core.method import Kind, Layer
from peftjax.methods.lora import LoRA


@dataclass(frozen=True)
class LoRAFA(LoRA):
    """`y = x K + b + s (x A) B`, with `s = alpha / r`, of which only B is trained.

    Parameters: frozen `a [in, r]`; `b [r, out]`; float32. They start as LoRA's do: A is
    uniform on `±1/sqrt(in)`, B zero. The gradient of B needs `x A`, which has r numbers
    of each input, so that x need not be kept for the backward pass. An embedding, where
    LoRA's A is zero, is refused.

    The torch library has no such method but an optimizer for LoRA, whose gradient of B
    is multiplied by `(A Aᵀ)^-1 / s²` (its A is `[r, in]`), as the paper's later version
    proposes; here the gradient is the loss's own. Files are LoRA's, and are read as it.

    Attributes:
        rank: r.
        alpha: numerator of the scale.
        rs: the scale is `alpha / sqrt(r)`.
        dropout: probability of dropping an input entry of A.

    >>> from peftjax.core.method import Layer
    >>> LoRAFA(rank=2, alpha=4.0).count(Layer(100, 3))
    6
    """

    frozen: ClassVar[tuple[str, ...]] = ("a",)
    kinds: ClassVar[tuple[Kind, ...]] = ("dense", "conv")

    def count(self, layer: Layer) -> int:
        return self.rank * layer.d_out
