"""Make tiny random U-Nets and an autoencoder with `diffusers`, and record outputs.

    pip install torch diffusers
    python tests/references/make_diffusion_references.py make tests/files/diffusion
    python tests/references/make_diffusion_references.py check FOLDER

`make` writes each model in the Hugging Face layout, its weights in float16, and beside
them `io.npz`: inputs and, computed in float32 with these weights, outputs. U-Nets have
a DDIM trajectory of 20 guided steps as well; `signal_encoder.npz`, beside the folder,
holds an encoder of ControlNet's. `check` loads with `diffusers` every model
in a folder, each beside its `io.npz`, and prints how far its outputs are from the
recorded ones. Images have channels first. Nothing of peftjax is used here.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

SMALL = {"norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 6}
CROSS, PLAIN = ("CrossAttnDownBlock2D", "DownBlock2D")
ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 29,
}
PREDICTION = {"unet_sd21": "v_prediction"}


def unet(widths, kinds, **entries):
    """Return a U-Net with the mirror of `kinds` on the way up."""
    ups = tuple(kind.replace("Down", "Up") for kind in kinds[::-1])
    types = {"down_block_types": kinds, "up_block_types": ups}
    return UNet2DConditionModel(
        block_out_channels=widths, **types, **{**SMALL, **entries}
    )


def models():
    """Return the models by name."""
    return {
        "unet_sd15": unet((8, 12), (CROSS, PLAIN), attention_head_dim=2),
        "unet_sd21": unet(
            (8, 8, 12),
            (CROSS, CROSS, PLAIN),
            attention_head_dim=(2, 4, 3),
            use_linear_projection=True,
            upcast_attention=True,
        ),
        "unet_sdxl": unet(
            (8, 12),
            (PLAIN, CROSS),
            layers_per_block=2,
            attention_head_dim=(1, 3),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            **ADDED,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 12, 12),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
    }


def randomise(model):
    """Give every parameter a value that matters, norms and biases included."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            deep = value.ndim > 1
            value.normal_(0.0, 0.8 / value[0].numel() ** 0.5 if deep else 0.2)
            if "norm" in name and name.endswith("weight"):
                value.add_(1.0)
    return model.half().eval()


def inputs(model, rng):
    """Return the inputs, in float32 or integers."""

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    if isinstance(model, AutoencoderKL):
        return {"images": normal(2, 3, 12, 8), "latents": normal(2, 4, 3, 2)}
    given = {
        "sample": normal(2, 4, 8, 12),
        "timestep": np.asarray([3, 871]),
        "context": normal(2, 5, 6),
        "empty": normal(2, 5, 6),
    }
    if model.config.addition_embed_type:
        numbers = rng.integers(0, 1024, (2, 6)).astype(np.float32)
        given |= {"text_embeds": normal(2, 5), "time_ids": numbers}
    return given


def call(model, given, x, t, context):
    """Return a U-Net's prediction."""
    added = {n: given[n] for n in ("text_embeds", "time_ids") if n in given}
    return model(x, t, context, added_cond_kwargs=added or None).sample


@torch.no_grad()
def run(name, model, given):
    """Return outputs."""
    given = {key: torch.from_numpy(value) for key, value in given.items()}
    if isinstance(model, AutoencoderKL):
        found = model.encode(given["images"]).latent_dist
        return {
            "mean": found.mean.numpy(),
            "log_variance": found.logvar.numpy(),
            "decoded": model.decode(given["latents"]).sample.numpy(),
        }
    x, context = given["sample"], given["context"]
    found = {"output": call(model, given, x, given["timestep"], context).numpy()}
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=PREDICTION.get(name, "epsilon"),
    )
    scheduler.set_timesteps(20)
    for t in scheduler.timesteps:
        without = call(model, given, x, t, given["empty"])
        guided = without + 3.0 * (call(model, given, x, t, context) - without)
        x = scheduler.step(guided, t, x).prev_sample
    return {**found, "trajectory": x.numpy()}


def make(folder):
    """Write every model, its inputs and its outputs."""
    for i, (name, model) in enumerate(models().items()):
        torch.manual_seed(200 + i)
        path = folder / name
        randomise(model).save_pretrained(path)
        given = inputs(model, np.random.default_rng(200 + i))
        outputs = run(name, model.float(), given)
        np.savez_compressed(path / "io.npz", **given, **outputs)
    make_signal(folder.parent / "signal_encoder.npz")


@torch.no_grad()
def make_signal(file):
    """Write ControlNet's encoder of a condition, an image and the result."""
    torch.manual_seed(300)
    model = ControlNetConditioningEmbedding(8, 3, (4, 6, 8))
    for value in model.parameters():
        value.normal_(0.0, 0.2)
    image = torch.rand(2, 3, 12, 8)
    arrays = {"image": image, "output": model(image), **model.state_dict()}
    np.savez_compressed(file, **{name: x.numpy() for name, x in arrays.items()})


def check(folder):
    """Print how far what `diffusers` makes of each model is from the record."""
    for path in sorted(folder.iterdir()):
        kind = AutoencoderKL if path.name == "vae" else UNet2DConditionModel
        model = kind.from_pretrained(path, torch_dtype=torch.float32).eval()
        io = dict(np.load(path / "io.npz"))
        found = run(path.name, model, io)
        worst = max(float(np.abs(found[k] - io[k]).max()) for k in found)
        print(f"{path.name}: {type(model).__name__}, largest difference {worst:.2e}")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
