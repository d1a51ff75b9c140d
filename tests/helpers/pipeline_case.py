"""A whole pipeline of text to image with a few features, its weights at random."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from peftjax.data.images import png
from peftjax.models import (
    AutoencoderKL,
    ClipText,
    ClipTextConfig,
    UNet2DConditionModel,
    UNetConfig,
    VaeConfig,
    save,
)

FILES = Path(__file__).parents[1] / "files"
UNET = UNetConfig(
    block_out_channels=(8,),
    down_block_types=("CrossAttnDownBlock2D",),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=8,
    norm_num_groups=2,
)
VAE = VaeConfig(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=2)
TEXT = ClipTextConfig(524, 8, 1, 2, 8, max_position_embeddings=24, eos_token_id=2)
SCHEDULE = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
SIZE = 16  # of an image: the autoencoder halves it


def make_pipeline(folder):
    """Write the five folders; return the folder."""
    latents = np.zeros((1, 4, 4, 4), np.float32)
    context = np.zeros((1, 3, TEXT.hidden_size), np.float32)
    models = {
        "unet": (UNet2DConditionModel(UNET), (latents, np.zeros(1, int), context)),
        "vae": (AutoencoderKL(VAE), (np.zeros((1, 4, 4, 3), np.float32),)),
        "text_encoder": (ClipText(TEXT), (np.zeros((1, 3), int),)),
    }
    for i, (name, (model, inputs)) in enumerate(models.items()):
        variables = jax.jit(model.init)(jax.random.key(i), *inputs)
        save(folder / name, model, variables)
    shutil.copytree(FILES / "clip_tokenizer", folder / "tokenizer")
    (folder / "scheduler").mkdir()
    edit_schedule(folder)
    return folder


def edit_schedule(folder, **entries):
    """Write `scheduler_config.json`, with other entries."""
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**SCHEDULE, **entries}))


def make_photographs(folder, count, shape=(20, 30, 3), seed=0):
    """Write images of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        image = rng.integers(0, 256, shape, np.uint8)
        (folder / f"{i}.png").write_bytes(png(image))
    return folder
