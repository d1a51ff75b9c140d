"""Reference arrays of AdaLoRA from the torch library (torch 2.14, peft 0.21, a CPU).

    python tests/references/make_adalora_references.py tests/files/goldens

Three linear layers under 60 updates of Adam: what they start from, the batches, and
after each update the loss, orthogonality included, and which triplets are left.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import torch

SETTINGS = {
    "init_r": 6,
    "lora_alpha": 9,
    "target_r": 2,
    "total_step": 60,
    "tinit": 5,
    "tfinal": 15,
    "deltaT": 3,
    "orth_reg_weight": 0.2,
    "beta1": 0.8,
    "beta2": 0.9,
}
LAYERS = ("first", "second", "last")
RATE = 0.01


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(12, 16)
        self.second = torch.nn.Linear(16, 16)
        self.last = torch.nn.Linear(16, 7)

    def forward(self, x, wanted):
        y = self.last(self.second(self.first(x).tanh()).tanh())
        return SimpleNamespace(loss=((y - wanted) ** 2).mean(), y=y)


def trained():
    torch.manual_seed(0)
    net = Net()
    x, wanted = torch.randn(60, 8, 12), torch.randn(60, 8, 7)
    found = {f"base.{name}": value for name, value in net.state_dict().items()}
    found = {"x": x, "wanted": wanted} | {k: v.clone() for k, v in found.items()}
    config = peft.AdaLoraConfig(target_modules=[*LAYERS], **SETTINGS)
    model = peft.get_peft_model(net, config)
    layers = {name: getattr(net, name) for name in LAYERS}

    def arrays(start):
        for name, layer in layers.items():
            for kind in "ABE":
                value = getattr(layer, f"lora_{kind}")["default"]
                found[f"{start}.{name}.{kind.lower()}"] = value.detach().clone()

    arrays("start")
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], RATE
    )
    losses, left = [], []
    for step in range(60):
        optimizer.zero_grad()
        # The wrapper that `get_peft_model` returns leaves the orthogonality out.
        loss = model.base_model(x[step], wanted[step]).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        losses.append(loss.item())
        e = [layer.lora_E["default"][:, 0] for layer in layers.values()]
        left.append(torch.stack(e).detach() != 0)
    arrays("end")
    found |= {"losses": torch.tensor(losses), "left": torch.stack(left)}
    found["y"] = model(x[0], wanted[0]).y
    merged = model.merge_and_unload()
    for name in LAYERS:
        found[f"merged.{name}"] = getattr(merged, name).weight
    return {name: value.detach().numpy() for name, value in found.items()}


if __name__ == "__main__":
    facts = {"settings": json.dumps(SETTINGS), "rate": RATE}
    np.savez_compressed(Path(sys.argv[1], "adalora_peft.npz"), **trained(), **facts)
