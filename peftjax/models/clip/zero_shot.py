"""Classify images by the names of their classes, and start a linear head from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from peftjax.data.tokenizer import columns, encode, pad_id
from peftjax.models.clip.config import LARGEST_ID, ClipVisionConfig
from peftjax.models.clip.model import Clip, normalise, projection, similarity
from peftjax.models.clip.towers import ImageTower

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEMPLATES = ("a photo of a {}.",)


def class_embeddings(
    model: Clip,
    variables: Mapping[str, Any],
    tokenizer: Tokenizer,
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    *,
    batch: int = 256,
) -> jax.Array:
    """Return the embedding of every class: the mean over its prompts.

    Every prompt's embedding has length 1, and so has their mean.

    Args:
        model: a CLIP.
        variables: its variables.
        tokenizer: its tokenizer, of `peftjax.data.tokenizer.load_tokenizer`.
        classes: their names.
        templates: prompts with `{}` in place of the name.
        batch: how many prompts run at once.

    Returns:
        `[classes, projection_dim]`, float32.

    Raises:
        ValueError: there is no class or template, a template has no `{}`, or the
            tokenizer does not end texts as the model expects.
    """
    without = [text for text in templates if "{}" not in text]
    if not classes or not templates or without:
        raise ValueError(
            "class_embeddings: expected classes and templates, each with {} for the "
            f"name, found {len(classes)} classes and {len(templates)} templates"
            + "".join(f"; {text!r} has none" for text in without[:3])
        )
    prompts = [text.replace("{}", name) for name in classes for text in templates]
    ids = _ids(model, tokenizer, prompts)

    @jax.jit
    def embed(variables: Mapping[str, Any], ids: jax.Array) -> jax.Array:
        return normalise(model.apply(variables, ids, method="text_features"))  # pyright: ignore[reportArgumentType]

    parts = [embed(variables, ids[i : i + batch]) for i in range(0, len(ids), batch)]
    each = jnp.concatenate(parts).reshape(len(classes), len(templates), -1)
    return normalise(each.mean(axis=1))


def _ids(model: Clip, tokenizer: Tokenizer, prompts: list[str]) -> np.ndarray:
    """Return the ids of the prompts, all of the model's length."""
    config = model.config.text
    tokens = encode(tokenizer, [prompts], config.max_position_embeddings)
    last, end = tokens.ids[tokens.starts[1:] - 1], config.eos_token_id
    if end != LARGEST_ID and (last != end).any():
        raise ValueError(
            f"class_embeddings: expected a tokenizer that ends every text with id {end}"
            f", the model's eos_token_id, found {last[last != end][0]}; is it this "
            "model's?"
        )
    # What follows the end has no effect.
    length = (config.max_position_embeddings,)
    return columns(tokens, pad_id(tokenizer), length)["input_ids"][:]


def zero_shot(
    model: Clip, variables: Mapping[str, Any], images: jax.Array, embeddings: jax.Array
) -> jax.Array:
    """Return the logits of images for classes that have only their names.

    Args:
        model: a CLIP.
        variables: its variables.
        images: `[images, height, width, channels]`.
        embeddings: `[classes, projection_dim]`, of `class_embeddings`.

    Returns:
        `[images, classes]`, float32.

    >>> from peftjax.models import ClipConfig, ClipTextConfig
    >>> model = Clip(ClipConfig(
    ...     ClipVisionConfig(32, 1, 2, 32, image_size=8, patch_size=4),
    ...     ClipTextConfig(50, 16, 1, 2, 32), projection_dim=4))
    >>> images, ids = jnp.ones((1, 8, 8, 3)), jnp.array([[1, 49]])
    >>> variables = model.init(jax.random.key(0), images, ids)
    >>> zero_shot(model, variables, images, jnp.eye(3, 4)).shape
    (1, 3)
    """
    features: Any = model.apply(variables, images, method="image_features")
    return similarity(features, embeddings, variables["params"]["logit_scale"])


class ClipClassifier(nn.Module):
    """CLIP's image tower and a linear head on standardised features.

    `head(norm(image_projection(image(x))))`, where the norm is a BatchNorm without
    parameters, as in ELEVATER (arXiv 2204.08790). Its running variance is the biased
    one of every batch, where the authors' library takes the unbiased.

    Attributes:
        config: the image tower.
        projection_dim: features between tower and head.
        num_classes: outputs of `head`.
        scan_layers: as in `Clip`.
        remat: as in `Clip`.
        dtype: as in `Clip`.
    """

    config: ClipVisionConfig
    projection_dim: int
    num_classes: int
    scan_layers: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Return `[images, num_classes]`, float32.

        Args:
            images: as in `ImageTower`.
            train: the norm takes mean and variance of the batch, and updates those of
                the collection `batch_stats`, which must be mutable.
        """
        options = (self.scan_layers, self.remat, self.dtype)
        tower = ImageTower(self.config, *options, name="image")
        x = tower(images, train=train).pooled
        x = projection(self.projection_dim, self.dtype, "image_projection")(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            use_bias=False,
            use_scale=False,
            use_fast_variance=False,
            dtype=jnp.float32,
            name="norm",
        )(x)
        return nn.Dense(self.num_classes, name="head")(x)


def image_classifier(
    model: Clip, variables: Mapping[str, Any], embeddings: jax.Array
) -> tuple[ClipClassifier, dict[str, Any]]:
    """Return a classifier whose head starts from the embeddings of texts.

    The head's kernel is their transpose, its bias zero; tower and projection are those
    of the model, under the same paths, so that they can go back into its variables.

    Args:
        model: a CLIP.
        variables: its variables.
        embeddings: `[classes, projection_dim]`, of `class_embeddings`.

    Returns:
        The module and its `{"params": ..., "batch_stats": ...}`.

    Raises:
        ValueError: the embeddings are of another shape.
    """
    dim = model.config.projection_dim
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        raise ValueError(
            f"image_classifier: expected embeddings [classes, {dim}], found "
            f"{embeddings.shape}"
        )
    options = (model.scan_layers, model.remat, model.dtype)
    classes = len(embeddings)
    params = {
        "image": variables["params"]["image"],
        "image_projection": variables["params"]["image_projection"],
        "head": {"kernel": embeddings.T, "bias": jnp.zeros(classes)},
    }
    stats = {"norm": {"mean": jnp.zeros(dim), "var": jnp.ones(dim)}}
    classifier = ClipClassifier(model.config.vision, dim, classes, *options)
    return classifier, {"params": params, "batch_stats": stats}
