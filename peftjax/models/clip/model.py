"""CLIP (arXiv 2103.00020): an image tower and a text tower into one space.

Parameters: the towers' under `image` and `text`, and `image_projection`,
`text_projection`, `logit_scale`.
"""

from __future__ import annotations

from math import log
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.clip.config import ClipConfig, ClipTextConfig
from peftjax.models.clip.towers import ImageTower, TextTower
from peftjax.models.encoder import normal


class Clip(nn.Module):
    """Both towers, their projections and the scale of the logits.

    Attributes:
        config: the architecture.
        scan_layers: layers under `layers` with a leading layer axis, run by `nn.scan`.
        remat: recompute each layer in the backward pass.
        dtype: dtype of the computation.

    >>> from peftjax.models import ClipTextConfig, ClipVisionConfig
    >>> model = Clip(ClipConfig(
    ...     ClipVisionConfig(32, 1, 2, 32, image_size=8, patch_size=4),
    ...     ClipTextConfig(50, 16, 1, 2, 32), projection_dim=4))
    >>> images, ids = jnp.ones((2, 8, 8, 3)), jnp.array([[1, 49]])
    >>> variables = model.init(jax.random.key(0), images, ids)
    >>> model.apply(variables, images, ids).shape
    (2, 1)
    """

    config: ClipConfig
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        fields = (self.scan_layers, self.remat, self.dtype)
        self.image = ImageTower(self.config.vision, *fields)
        self.text = TextTower(self.config.text, *fields)
        dim = self.config.projection_dim
        self.image_projection = projection(dim, self.dtype)
        self.text_projection = projection(dim, self.dtype)
        # exp(s) = 1 / 0.07 at the start, as in the paper.
        start = nn.initializers.constant(-log(0.07))
        self.logit_scale = self.param("logit_scale", start, ())

    def __call__(
        self,
        images: jax.Array,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Return the logits of every image with every text.

        Args:
            images: `[images, height, width, channels]`, as in `ImageTower`.
            input_ids: `[texts, tokens]`, as in `TextTower`.
            attention_mask: `[texts, tokens]`.
            train: as in `ImageTower`.
            output_hidden_states: return the pair (logits, `{"image": ..., "text": ...}`
                with the hidden states of the towers).

        Returns:
            `[images, texts]`, float32.
        """
        options = {"train": train, "output_hidden_states": output_hidden_states}
        image = self.image(images, **options)
        text = self.text(input_ids, attention_mask, **options)
        states = {}
        if output_hidden_states:
            (image, states["image"]), (text, states["text"]) = image, text
        logits = similarity(
            self.image_projection(image.pooled),
            self.text_projection(text.pooled),
            self.logit_scale,
        )
        return (logits, states) if output_hidden_states else logits

    def image_features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Return `[images, projection_dim]`, not normalised."""
        return self.image_projection(self.image(images, train=train).pooled)

    def text_features(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Return `[texts, projection_dim]`, not normalised."""
        pooled = self.text(input_ids, attention_mask, train=train).pooled
        return self.text_projection(pooled)


class ClipText(nn.Module):
    """The text tower alone: the `text_encoder` of Stable Diffusion.

    Parameters: the tower's under `text`, and `text_projection` where there is one.

    Attributes:
        config: the architecture.
        projection_dim: features that the end of a text is projected to, as in SDXL's
            second encoder; None: it is not.
        scan_layers: as in `Clip`.
        remat: as in `Clip`.
        dtype: as in `Clip`.

    >>> from peftjax.models import ClipTextConfig
    >>> model = ClipText(ClipTextConfig(50, 16, 1, 2, 32), projection_dim=4)
    >>> ids = jnp.array([[1, 7, 49]])
    >>> encoding, _ = model.init_with_output(jax.random.key(0), ids)
    >>> encoding.hidden.shape, encoding.pooled.shape
    ((1, 3, 16), (1, 4))
    """

    config: ClipTextConfig
    projection_dim: int | None = None
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Return an `Encoding`; `pooled` is projected where there is a projection.

        Args:
            input_ids: as in `TextTower`.
            attention_mask: as there.
            train: as there.
            output_hidden_states: as there; SDXL reads the last state but one.

        Raises:
            ValueError: the arguments do not fit.
        """
        fields = (self.scan_layers, self.remat, self.dtype)
        found = TextTower(self.config, *fields, name="text")(
            input_ids,
            attention_mask,
            train=train,
            output_hidden_states=output_hidden_states,
        )
        if self.projection_dim is None:
            return found
        result, hidden = found if output_hidden_states else (found, None)
        project = projection(self.projection_dim, self.dtype, "text_projection")
        result = result._replace(pooled=project(result.pooled))
        return (result, hidden) if output_hidden_states else result


def projection(features: int, dtype: Any, name: str | None = None) -> nn.Dense:
    """Return the linear map from a tower into the common space."""
    return nn.Dense(
        features, use_bias=False, dtype=dtype, kernel_init=normal, name=name
    )


def normalise(x: jax.Array) -> jax.Array:
    """Return x with rows of length 1, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def similarity(image: jax.Array, text: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """Return `exp(s)` times the cosine of every image with every text.

    Args:
        image: `[images, features]`.
        text: `[texts, features]`.
        logit_scale: `[]`, s.

    Returns:
        `[images, texts]`, float32.
    """
    scale = jnp.exp(logit_scale.astype(jnp.float32))
    return scale * (normalise(image) @ normalise(text).T)
