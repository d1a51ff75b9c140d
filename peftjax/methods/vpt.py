"""VPT: tokens that are learned, beside the patches of an image.

Jia et al., "Visual Prompt Tuning", arXiv 2203.12119.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from peftjax.core.method import AtInit, Key, Kind, Layer, OutputMethod, Params
from peftjax.methods.settings import check_count


@dataclass(frozen=True)
class VPT(OutputMethod):
    r"""`z = [x, P]`: prompts P beside a layer's tokens x.

    Of a `ViT` or `Dinov2`, `r"blocks_\d+/prompts:output"` is VPT-deep (Eq. 6 and 7),
    where the next layer has prompts of its own in place of those; `"prompts:output"` is
    VPT-shallow (Eq. 4 and 5), whose prompts run through all layers. It never merges.

    Parameters: `prompts [length, width]`, P, float32, uniform within
    `±sqrt(6 / (3 patch² + width))`, Xavier's of the layer that embeds patches.

    Prompts lie behind the patches where the authors put them between class token and
    patches, which is the same to attention. The option of their code to project or drop
    prompts, off by default there, is left out.

    Attributes:
        length: number of prompts.
        patch: side of a patch in pixels, for the start alone.

    >>> layer = Layer(0, 8, "prefix")
    >>> VPT(length=2).init(jax.random.key(0), layer)["prompts"].shape
    (2, 8)
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("prefix",)

    length: int
    patch: int = 16

    def __post_init__(self) -> None:
        check_count(self, "length")
        check_count(self, "patch")

    @property
    def at_init(self) -> AtInit:
        return "none"

    def count(self, layer: Layer) -> int:
        return self.length * layer.d_out

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        bound = (6 / (3 * self.patch**2 + layer.d_out)) ** 0.5
        shape = (self.length, layer.d_out)
        return {"prompts": jax.random.uniform(key, shape, minval=-bound, maxval=bound)}

    def edit(self, p: Params, y: Any, x: Any, *, key: Key = None) -> Any:
        return p["prompts"]
