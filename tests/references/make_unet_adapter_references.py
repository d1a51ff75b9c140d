"""Put adapters of the torch library `peft` on a tiny U-Net of `diffusers`.

    pip install torch diffusers peft
    python tests/references/make_unet_adapter_references.py make tests/files
    python tests/references/make_unet_adapter_references.py curve tests/files
    python tests/references/make_unet_adapter_references.py check tests/files FOLDER

`make` writes each to `unet_adapters/NAME` as the library does, with random values, and
beside it `io.npz`: the adapted and the merged model's outputs for the base's inputs.
`curve` trains two of them for 20 steps of AdamW from there, on fixed noise and times,
and writes `curve.npz`: these, the settings and the losses. `check` loads with the
library every adapter in a folder, as it would its own, and prints how far its outputs
are from those recorded under the same name. Nothing of peftjax is used here.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

# The placement of HRA's diffusion experiments, and of DreamBooth with LoRA.
ATTENTION = {"target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
ADAPTERS = {
    "lora": peft.LoraConfig(r=3, lora_alpha=5, **ATTENTION),
    "hra": peft.HRAConfig(r=4, **ATTENTION),
    "lora_conv": peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["conv1", "proj_in", "time_emb_proj"]
    ),
}


def base(root):
    """Return a fresh model and the inputs of its call."""
    path = root / "diffusion" / "unet_sd15"
    model = UNet2DConditionModel.from_pretrained(path, torch_dtype=torch.float32)
    io = np.load(path / "io.npz")
    given = [torch.from_numpy(io[n]) for n in ("sample", "timestep", "context")]
    return model.eval(), given


def output(model, given):
    """Return the prediction."""
    with torch.no_grad():
        return model(*given).sample.numpy()


def make(root):
    """Write every adapter and its outputs."""
    for i, (name, config) in enumerate(ADAPTERS.items()):
        torch.manual_seed(300 + i)
        model, given = base(root)
        adapted = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            for value in adapted.parameters():
                if value.requires_grad:
                    value.add_(torch.randn_like(value) * 0.2)
        folder = root / "unet_adapters" / name
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        trainable, _ = adapted.get_nb_trainable_parameters()
        found = output(adapted, given)
        merged = output(adapted.merge_and_unload(), given)
        moved = np.abs(found - output(*base(root))).max()
        print(f"{name}: merged {np.abs(merged - found).max():.1e}, base {moved:.1e}")
        np.savez_compressed(
            folder / "io.npz", adapted=found, merged=merged, n_trainable=trainable
        )


def curve(root, steps=20, lr=3e-3, weight_decay=0.1):
    """Write the losses of training from the factors that `make` wrote."""
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    for i, name in enumerate(("lora", "hra")):
        torch.manual_seed(400 + i)
        folder = root / "unet_adapters" / name
        model, (clean, _, context) = base(root)
        adapted = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
        trained = [value for value in adapted.parameters() if value.requires_grad]
        descent = torch.optim.AdamW(trained, lr, weight_decay=weight_decay)
        noise = torch.randn(steps, *clean.shape)
        times = torch.randint(0, 1000, (steps, len(clean)))
        losses = []
        for eps, t in zip(noise, times):
            noised = schedule.add_noise(clean, eps, t)
            loss = (adapted(noised, t, context).sample - eps).square().mean()
            descent.zero_grad()
            loss.backward()
            descent.step()
            losses.append(loss.item())
        print(f"{name}: {losses[0]:.4f} to {losses[-1]:.4f}")
        np.savez_compressed(
            folder / "curve.npz",
            noise=noise.numpy(),
            times=times.numpy().astype(np.int32),
            losses=np.float32(losses),
            lr=lr,
            weight_decay=weight_decay,
        )


def check(root, folder):
    """Print how far the library's outputs with every adapter are from the record."""
    for path in sorted(folder.iterdir()):
        model, given = base(root)
        found = output(peft.PeftModel.from_pretrained(model, path).eval(), given)
        expected = np.load(root / "unet_adapters" / path.name / "io.npz")["adapted"]
        print(f"{path.name}: largest difference {np.abs(found - expected).max():.2e}")


if __name__ == "__main__":
    {"make": make, "curve": curve, "check": check}[sys.argv[1]](
        *map(Path, sys.argv[2:])
    )
