"""Arrays of the torch library's starts (EVA, CorDA, LoRA-GA) for tests/starts.

`python tests/references/make_starts_references.py` in an environment with torch and
peft 0.21 writes `tests/files/starts.npz`. Kernels are stored as here, `[in, out]`.
"""

from pathlib import Path

import numpy as np
import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import get_eva_state_dict
from peft.tuners.lora.loraga import preprocess_loraga

FILE = Path(__file__).parents[1] / "files" / "starts.npz"
SIZES = ((6, 8), (8, 8), (8, 5))
RANK, ALPHA = 2, 6.0


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [torch.nn.Linear(m, n) for m, n in SIZES]
        self.fc1, self.fc2, self.fc3 = layers

    def forward(self, x):
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


def config(**settings):
    targets = ["fc1", "fc2", "fc3"]
    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **settings)


def main():
    draw = torch.Generator().manual_seed(1)
    # Directions of unlike size, so that components have an order.
    spread = torch.tensor([4.0, 0.6, 0.5, 0.4, 0.3, 0.2])
    x = torch.randn(2, 40, 6, generator=draw) * spread + 0.5
    y = torch.randn(2, 40, 5, generator=draw)
    found = {"x": x, "y": y}
    for name, layer in Net().named_children():
        found[f"{name}/kernel"] = layer.weight.T
        found[f"{name}/bias"] = layer.bias
    for rho in (1.0, 2.0):
        eva = EvaConfig(rho=rho, use_label_mask=False, tau=0.9999)
        state = get_eva_state_dict(
            Net(),
            [x[0]],
            config(init_lora_weights="eva", eva_config=eva),
            forward_fn=lambda model, batch: model(batch),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=None,
            show_progress_bar=False,
        )
        for name, a in state.items():
            found[f"eva{rho:g}/{name}"] = a.T
    for method in ("ipm", "kpm"):
        model = Net()
        own = config(
            init_lora_weights="corda", corda_config=CordaConfig(corda_method=method)
        )
        preprocess_corda(
            model, own, run_model=lambda model=model: [model(b) for b in x]
        )
        keep(found, f"corda_{method}", get_peft_model(model, own))
    model = Net()
    own = config(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())

    def step():
        for batch, target in zip(x, y):
            ((model(batch) - target) ** 2).mean().backward()

    preprocess_loraga(model, own, step)
    keep(found, "lora_ga", get_peft_model(model, own))
    arrays = {
        key: np.asarray(value.detach(), np.float32) for key, value in found.items()
    }
    np.savez_compressed(FILE, **arrays)
    print(f"{FILE}: {FILE.stat().st_size} bytes, {len(arrays)} arrays")


def keep(found, what, model):
    for name in ("fc1", "fc2", "fc3"):
        layer = getattr(model.base_model.model, name)
        found[f"{what}/{name}/a"] = layer.lora_A["default"].weight.T
        found[f"{what}/{name}/b"] = layer.lora_B["default"].weight.T
        found[f"{what}/{name}/base"] = layer.base_layer.weight.T


if __name__ == "__main__":
    main()
