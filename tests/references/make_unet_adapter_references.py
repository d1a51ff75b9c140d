"""Put adapters of the torch library `peft` on a tiny U-Net of `diffusers`.

    pip install torch diffusers peft
    python tests/references/make_unet_adapter_references.py make tests/files
    python tests/references/make_unet_adapter_references.py check tests/files FOLDER

`make` writes each to `unet_adapters/NAME` as the library does, with random values, and
beside it `io.npz`: the adapted and the merged model's outputs for the base's inputs.
`check` loads with the library every adapter in a folder, as it would its own, and
prints how far its outputs are from those recorded under the same name. Nothing of
peftjax is used here.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch
from diffusers import UNet2DConditionModel

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


def check(root, folder):
    """Print how far the library's outputs with every adapter are from the record."""
    for path in sorted(folder.iterdir()):
        model, given = base(root)
        found = output(peft.PeftModel.from_pretrained(model, path).eval(), given)
        expected = np.load(root / "unet_adapters" / path.name / "io.npz")["adapted"]
        print(f"{path.name}: largest difference {np.abs(found - expected).max():.2e}")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*map(Path, sys.argv[2:]))
