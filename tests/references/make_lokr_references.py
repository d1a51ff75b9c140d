"""Reference arrays of LoKr from the torch library (torch 2.13, peft 0.21, on a CPU).

    python tests/references/make_lokr_references.py tests/files/goldens

One linear layer of 24 to 16 features each: `full` has both factors whole, `low` the
second one in low rank, `both` both of them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch

CASES = {
    "full": {"r": 8, "alpha": 12},
    "low": {"r": 1, "alpha": 3},
    "both": {"r": 1, "alpha": 3, "decompose_both": True, "decompose_factor": 4},
}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(24, 16)

    def forward(self, x):
        return self.lin(x)


def reference(settings):
    torch.manual_seed(0)
    base, x = Net(), torch.randn(2, 5, 24)
    cotangent = torch.randn(2, 5, 16)
    arrays = {"x": x, "weight": base.lin.weight, "bias": base.lin.bias}
    arrays = {name: value.detach().clone() for name, value in arrays.items()}
    config = peft.LoKrConfig(target_modules=["lin"], **settings)
    model = peft.get_peft_model(base, config)
    for name, value in peft.get_peft_model_state_dict(model).items():
        arrays[f"init_state.{name}"] = value.clone()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lokr" in name:
                value.copy_(torch.randn_like(value))
    y = model(x)
    (y * cotangent).sum().backward()
    arrays |= {"y": y.detach(), "cotangent": cotangent}
    for name, value in peft.get_peft_model_state_dict(model).items():
        arrays[f"state.{name}"] = value.clone()
    for name, value in model.named_parameters():
        if value.grad is not None:
            arrays[f"grad.{name}"] = value.grad
    merged = model.merge_and_unload()
    arrays["merged_weight"] = merged.lin.weight.detach()
    found = {name: value.numpy() for name, value in arrays.items()}
    return found | {"config_json": json.dumps(settings)}


if __name__ == "__main__":
    for case, settings in CASES.items():
        np.savez(Path(sys.argv[1], f"lokr_peft_{case}.npz"), **reference(settings))
