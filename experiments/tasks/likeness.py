"""How like pictures are to real ones and to their prompts: CLIP-I, CLIP-T, DINO.

Ruiz et al., "DreamBooth", arXiv 2208.12242, section 4.2: cosines of CLIP's embeddings
of a picture and a real image, of a picture and its prompt, and of a DINO's features.
They need weights, `paths.clip` and `paths.dino`. Of the autoencoder alone there is the
cosine of latents, `vae_i`, which says whether a run does anything, and no more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj
from experiments.tasks.latents import chunks
from peftjax.data.images import normalise
from peftjax.data.tokenizer import load_tokenizer
from peftjax.models.clip.model import Clip

NEEDS = {"clip_i": "clip", "clip_t": "clip", "dino": "dino"}
# Of pixels in [0, 1], as CLIP's own.
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
DEVIATION = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def metric(config: Any) -> str:
    """Return the score of a table: CLIP-I where there is a CLIP."""
    return "clip_i" if config.paths.get("clip") else "vae_i"


def lacking(config: Any) -> str:
    """Return what is not computed, by name; empty where all is."""
    lack: dict[str, list[str]] = {}
    for name, path in NEEDS.items():
        if not config.paths.get(path):
            lack.setdefault(path, []).append(name)
    parts = (f"{', '.join(x)} (no --config.paths.{path})" for path, x in lack.items())
    return "; ".join(parts)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of every row with every row.

    >>> cosines(np.eye(2), np.ones((1, 2))).round(3).tolist()
    [[0.707], [0.707]]
    """

    def unit(x: np.ndarray) -> np.ndarray:
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    return unit(one) @ unit(other).T


def scores(
    config: Any,
    generated: Callable[[], np.ndarray],
    real: Callable[[], np.ndarray],
    prompts: Sequence[str],
    labels: np.ndarray,
    paired: bool,
) -> dict[str, float]:
    """Return what can be computed with the weights that are given.

    Args:
        config: of the run.
        generated: returns pictures, uint8 `[N, H, W, 3]`.
        real: returns real images, uint8.
        prompts: of the labels.
        labels: `[N]`.
        paired: picture i belongs to the real image of its label, not to all of them.
    """

    def near(one: np.ndarray, other: np.ndarray) -> float:
        found = cosines(one, other)
        if paired:
            return float(found[np.arange(len(labels)), labels].mean())
        return float(found.mean())

    found: dict[str, float] = {}
    if place := config.paths.get("clip"):
        clip = _clip(str(place))
        drawn = clip.images(generated())
        found["clip_i"] = near(drawn, clip.images(real()))
        texts = cosines(drawn, clip.texts(prompts))
        found["clip_t"] = float(texts[np.arange(len(labels)), labels].mean())
    if place := config.paths.get("dino"):
        features = _dino(str(place))
        found["dino"] = near(features(generated()), features(real()))
    return found


class _Clip:
    def __init__(self, place: str):
        self.model, self.variables = pj.models.load(place, dtype=jnp.float32)
        if not isinstance(self.model, Clip):
            raise pj.models.CheckpointError(
                f"{place}: --config.paths.clip: expected a whole CLIP, found a "
                f"{type(self.model).__name__}"
            )
        self.tokenizer = load_tokenizer(place)
        apply = self.model.apply
        self._images = jax.jit(functools.partial(apply, method="image_features"))
        self._texts = jax.jit(functools.partial(apply, method="text_features"))

    def images(self, pixels: np.ndarray) -> np.ndarray:
        small = _resized(pixels, self.model.config.vision.image_size)
        x = (small.astype(np.float32) / 255 - MEAN) / DEVIATION
        return chunks(lambda part: self._images(self.variables, part), x)

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        text = self.model.config.text
        rows = [x.ids for x in self.tokenizer.encode_batch([*prompts])]
        most = text.max_position_embeddings
        if long := [p for p, row in zip(prompts, rows) if len(row) > most]:
            raise ValueError(f"clip_t: {long[0]!r}: expected at most {most} tokens")
        # What follows the end has no part.
        ids = np.array([row + row[-1:] * (most - len(row)) for row in rows], np.int32)
        return chunks(lambda part: self._texts(self.variables, part), ids)


_clip = functools.lru_cache(maxsize=1)(_Clip)


@functools.lru_cache(maxsize=1)
def _dino(place: str) -> Callable[[np.ndarray], np.ndarray]:
    model, variables = pj.models.load(place, head="none", dtype=jnp.float32)
    size = getattr(model, "config", model).image_size
    call = jax.jit(model.apply)

    def features(pixels: np.ndarray) -> np.ndarray:
        def run(part: np.ndarray) -> Any:
            found = call(variables, part)
            return getattr(found, "pooled", found)

        return chunks(run, normalise(_resized(pixels, size), "imagenet"))

    return features


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    from peftjax.data.images import resize

    return np.stack([resize(Image.fromarray(x), size) for x in pixels])
