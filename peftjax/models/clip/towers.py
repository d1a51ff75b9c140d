"""The towers of CLIP (arXiv 2103.00020): pre-norm transformers of images and texts.

Parameters: `class_embedding`, `patch_embed`, `position_embeddings`, `pre_norm` of the
image tower, `token_embeddings`, `position_embeddings` of the text tower; in either per
layer `layer_norm1`, `self_attn/{q,k,v,out}_proj`, `layer_norm2`, `mlp/fc1`, `mlp/fc2`,
then `norm`. Every dense kernel is `[in, out]`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from peftjax.models.activations import activation
from peftjax.models.attention import attend
from peftjax.models.clip.config import (
    LARGEST_ID,
    ClipTextConfig,
    ClipVisionConfig,
)
from peftjax.models.encoder import (
    Encoding,
    Part,
    advance,
    apply_encoder,
    check_inputs,
    layer_norm,
    normal,
)


class Attention(Part):
    """Multi-head self-attention."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        config = self.config
        heads = (*x.shape[:2], config.num_attention_heads, -1)
        q, k, v = (
            self.dense(config.hidden_size, f"{name}_proj")(x).reshape(heads)
            for name in "qkv"
        )
        rate = 0.0 if self.deterministic else config.attention_dropout
        key = self.make_rng("dropout") if rate else None
        y = attend(q, k, v, mask, dropout=rate, dropout_key=key).reshape(x.shape)
        return self.dense(config.hidden_size, "out_proj")(y)


class Mlp(Part):
    """`fc2(act(fc1(x)))`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        x = self.dense(config.intermediate_size, "fc1")(x)
        return self.dense(config.hidden_size, "fc2")(activation(config.hidden_act)(x))


class Layer(Part):
    """One pre-norm layer: attention, then MLP, each added to its input."""

    @nn.compact
    def __call__(
        self, carry: dict, own: dict, mask: jax.Array | None
    ) -> tuple[dict, None]:
        fields, x = (self.config, self.deterministic, self.dtype), carry["x"]
        attention = Attention(*fields, name="self_attn")
        x = x + attention(self.norm(x, "layer_norm1"), mask)
        x = x + Mlp(*fields, name="mlp")(self.norm(x, "layer_norm2"))
        return advance(carry, own, x)


class _Tower(nn.Module):
    """What the towers share.

    Attributes:
        config: its architecture.
        scan_layers: layers under `layers` with a leading layer axis, run by `nn.scan`.
        remat: recompute each layer in the backward pass.
        dtype: dtype of the computation.
    """

    config: Any
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    def embed(self, rows: int, name: str) -> nn.Embed:
        return nn.Embed(
            rows,
            self.config.hidden_size,
            dtype=self.dtype,
            embedding_init=normal,
            name=name,
        )

    def norm(self, x: jax.Array, name: str) -> jax.Array:
        return layer_norm(self.config.layer_norm_eps, self.dtype, name)(x)

    def layers(
        self, x: jax.Array, mask: jax.Array | None, train: bool, keep: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        return apply_encoder(
            Layer,
            {"config": self.config, "deterministic": not train, "dtype": self.dtype},
            self.config.num_hidden_layers,
            x,
            mask,
            scan=self.scan_layers,
            remat=self.remat,
            keep=keep,
        )


class ImageTower(_Tower):
    """A pre-norm ViT with a norm before the first layer; `pooled` is the class token's.

    >>> config = ClipVisionConfig(hidden_size=16, num_hidden_layers=2, image_size=8,
    ...     num_attention_heads=2, intermediate_size=32, patch_size=4)
    >>> images = jnp.zeros((1, 8, 8, 3))
    >>> encoding, variables = ImageTower(config).init_with_output(
    ...     jax.random.key(0), images)
    >>> encoding.hidden.shape, encoding.pooled.shape
    ((1, 5, 16), (1, 16))
    """

    config: ClipVisionConfig

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Return an `Encoding`; `hidden` is the last layer's, `pooled` has the norm.

        Args:
            images: `[batch, height, width, channels]`, floating, normalised with CLIP's
                mean and deviation.
            train: dropout acts; it draws from the rng `"dropout"`.
            output_hidden_states: return the pair (encoding, hidden states), the latter
                `[layers + 1, batch, tokens, hidden_size]`, embeddings first.

        Raises:
            ValueError: the images do not fit.
        """
        config = self.config
        size, channels = config.image_size, config.num_channels
        fits = images.ndim == 4 and images.shape[1:] == (size, size, channels)
        if not fits or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"Clip: expected floating images [batch, {size}, {size}, {channels}], "
                f"found {images.dtype}{list(images.shape)}"
            )
        side, width = (config.patch_size,) * 2, config.hidden_size
        patches = nn.Conv(
            width,
            side,
            side,
            "VALID",
            use_bias=False,
            dtype=self.dtype,
            name="patch_embed",
        )
        x = patches(images).reshape(len(images), -1, width)
        token = self.param("class_embedding", normal, (width,)).astype(x.dtype)
        token = jnp.broadcast_to(token, (len(x), 1, width))
        x = jnp.concatenate([token, x], axis=1)
        tokens = x.shape[1]
        x = x + self.embed(tokens, "position_embeddings")(jnp.arange(tokens))
        x = self.norm(x, "pre_norm")
        x, hidden = self.layers(x, None, train, output_hidden_states)
        result = Encoding(x, self.norm(x[:, 0], "norm"))
        return (result, hidden) if output_hidden_states else result


class TextTower(_Tower):
    """A causal pre-norm transformer; `pooled` is the token that ends the text.

    >>> config = ClipTextConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2,
    ...     num_attention_heads=2, intermediate_size=32, eos_token_id=49)
    >>> ids = jnp.array([[48, 7, 49, 49]])
    >>> encoding, variables = TextTower(config).init_with_output(
    ...     jax.random.key(0), ids)
    >>> bool((encoding.pooled == encoding.hidden[:, 2]).all())
    True
    """

    config: ClipTextConfig

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        train: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        """Return an `Encoding`, both of it after the norm.

        Args:
            input_ids: `[batch, tokens]`, integers, each row with the token that ends
                it; without it the first token is taken.
            attention_mask: `[batch, tokens]`, 1 for a token, 0 for padding. Padding
                after the end has no effect, since attention is causal.
            train: as in `ImageTower`.
            output_hidden_states: as in `ImageTower`.

        Raises:
            ValueError: the arguments do not fit.
        """
        config, tokens = self.config, input_ids.shape[-1]
        most = config.max_position_embeddings
        check_inputs("Clip", config, most, input_ids, attention_mask)
        x = self.embed(config.vocab_size, "token_embeddings")(input_ids)
        x = x + self.embed(most, "position_embeddings")(jnp.arange(tokens))
        mask = jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask.astype(bool)[:, None, None, :]
        x, hidden = self.layers(x, mask, train, output_hidden_states)
        x = self.norm(x, "norm")
        end = input_ids
        if config.eos_token_id != LARGEST_ID:
            end = input_ids == config.eos_token_id
        end = jnp.argmax(end, axis=1)[:, None, None]
        result = Encoding(x, jnp.take_along_axis(x, end, axis=1)[:, 0])
        return (result, hidden) if output_hidden_states else result
