"""The parts of a Stable Diffusion pipeline, from one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from peftjax import storage
from peftjax.data.clip_tokenizer import padding
from peftjax.data.tokenizer import load_tokenizer
from peftjax.diffusion.schedule import NoiseSchedule, read_schedule
from peftjax.models.files import CheckpointError
from peftjax.models.loading import load

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from peftjax.models import AutoencoderKL, ClipText, UNet2DConditionModel

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


class Pipeline(NamedTuple):
    """What a folder of Stable Diffusion 1.5 or 2.1 holds.

    Attributes:
        unet: predicts noise.
        vae: between images and latents.
        text_encoder: between prompts and the context of the U-Net.
        tokenizer: of the prompts.
        pad: the id that fills a prompt up.
        schedule: the process of noise.
        variables: of the three models, by their names.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: ClipText
    tokenizer: Tokenizer
    pad: int
    schedule: NoiseSchedule
    variables: Mapping[str, Any]

    @property
    def factor(self) -> int:
        """How many times smaller than an image its latents are, each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def prompt_ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Return the ids of prompts, int32 `[N, tokens]`, each filled up.

        Raises:
            ValueError: a prompt is longer than the text encoder reads.
        """
        most = self.text_encoder.config.max_position_embeddings
        rows = [row.ids for row in self.tokenizer.encode_batch([*prompts])]
        for prompt, row in zip(prompts, rows):
            if len(row) > most:
                raise ValueError(
                    f"prompt {prompt[:60]!r}...: expected at most {most} tokens, the "
                    f"first and the last included, found {len(row)}; shorten it"
                )
        full = np.full((len(rows), most), self.pad, np.int32)
        for place, row in zip(full, rows):
            place[: len(row)] = row
        return full


def load_pipeline(
    folder: str | os.PathLike[str], *, dtype: Any = None, remat: bool = False
) -> Pipeline:
    """Load a pipeline of Stable Diffusion 1.5 or 2.1 in the Hugging Face layout.

    Args:
        folder: holds the folders `PARTS`. SDXL has a second text encoder: load its
            parts with `pj.models.load`.
        dtype: of weights and computation; the files' own if absent.
        remat: recompute the U-Net's blocks in the backward pass.

    Raises:
        CheckpointError: a part is absent, damaged, or does not fit the others.
        DataError: the tokenizer is damaged.
    """
    place = storage.path(folder)
    absent = [part for part in PARTS if not (place / part).is_dir()]
    if absent:
        raise CheckpointError(
            f"{place}: expected the folders {', '.join(PARTS)} of a pipeline, found "
            f"none called {', '.join(absent)}; copy the whole pipeline"
        )
    if (place / "text_encoder_2").is_dir():
        raise CheckpointError(
            f"{place}: text_encoder_2: expected one text encoder, found SDXL's two; "
            "load its parts one by one with peftjax.models.load"
        )
    schedule = read_schedule(place / "scheduler")
    tokenizer = load_tokenizer(place / "tokenizer")
    token = padding(place / "tokenizer")
    pad = tokenizer.token_to_id(token)
    if pad is None:
        raise CheckpointError(
            f"{place / 'tokenizer'}: pad_token {token!r}: expected one of its tokens"
        )
    unet, unet_variables = load(place / "unet", dtype=dtype, remat=remat)
    vae, vae_variables = load(place / "vae", dtype=dtype)
    text, text_variables = load(place / "text_encoder", dtype=dtype)
    variables = {
        "unet": unet_variables,
        "vae": vae_variables,
        "text_encoder": text_variables,
    }
    found = Pipeline(unet, vae, text, tokenizer, pad, schedule, variables)
    _check(place, found)
    return found


def _check(place: Any, found: Pipeline) -> None:
    """Raise CheckpointError where the parts do not fit each other."""
    unet, vae, text = found.unet, found.vae, found.text_encoder
    expected = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    expected["text_encoder"] = "ClipText"
    for part, name in expected.items():
        if type(model := getattr(found, part)).__name__ != name:
            raise CheckpointError(
                f"{place / part}: expected a {name}, found a {type(model).__name__}"
            )
    sizes = (
        ("unet", "cross_attention_dim", unet.config.cross_attention_dim),
        ("text_encoder", "hidden_size", text.config.hidden_size),
        ("unet", "in_channels", unet.config.in_channels),
        ("vae", "latent_channels", vae.config.latent_channels),
        ("tokenizer", "ids", found.tokenizer.get_vocab_size()),
        ("text_encoder", "vocab_size", text.config.vocab_size),
    )
    for (one, name, size), (other, its, whole) in zip(sizes[::2], sizes[1::2]):
        if size > whole if name == "ids" else size != whole:
            raise CheckpointError(
                f"{place}: {one}: {name} {size} does not fit {other}: {its} {whole}; "
                "are they of one pipeline of text to image?"
            )
