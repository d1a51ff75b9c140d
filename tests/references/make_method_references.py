"""Reference arrays of methods from the torch library (torch 2.14, peft 0.21, on a CPU).

    pip install torch peft
    python tests/references/make_method_references.py tests/files/goldens [NAME ...]

Each case is one linear layer with an adapter of the library's on it: the fresh state,
a random one, output, gradients and the merged layer. Nothing of peftjax is used here.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
from peft.tuners.boft import layer as boft

IN, OUT = 24, 16
START = {name: {"init_lora_weights": name} for name in ("pissa", "olora")}
# name: class of the configuration, its settings, and the layer's sizes
CASES = {
    "vera": (peft.VeraConfig, {"r": 4, "d_initial": 0.3}, IN, OUT),
    "pissa": (peft.LoraConfig, {"r": 3, "lora_alpha": 5, **START["pissa"]}, IN, OUT),
    "olora": (
        peft.LoraConfig,
        {"r": 3, "lora_alpha": 5, "use_rslora": True, **START["olora"]},
        IN,
        OUT,
    ),
    "loha": (peft.LoHaConfig, {"r": 2, "alpha": 5}, IN, OUT),
    "loha_wide": (peft.LoHaConfig, {"r": 2, "alpha": 5}, 48, 40),
    "boft": (peft.BOFTConfig, {"boft_block_size": 4}, IN, OUT),
    "boft_2": (
        peft.BOFTConfig,
        {"boft_block_size": 4, "boft_n_butterfly_factor": 2},
        IN,
        OUT,
    ),
    "boft_3": (
        peft.BOFTConfig,
        {"boft_block_size": 2, "boft_n_butterfly_factor": 3},
        IN,
        OUT,
    ),
    "miss": (peft.MissConfig, {"r": 4}, IN, OUT),
    "miss_rest": (peft.MissConfig, {"r": 7}, IN, OUT),
    "delora": (peft.DeloraConfig, {"r": 3, "delora_lambda": 5}, IN, OUT),
    "road": (peft.RoadConfig, {"group_size": 8}, IN, OUT),
    "road_2": (peft.RoadConfig, {"group_size": 4, "variant": "road_2"}, IN, OUT),
    "road_4": (peft.RoadConfig, {"group_size": 8, "variant": "road_4"}, IN, OUT),
    "randlora": (peft.RandLoraConfig, {"r": 3, "randlora_alpha": 5}, IN, OUT),
    "randlora_up": (peft.RandLoraConfig, {"r": 4, "randlora_alpha": 5}, OUT, IN),
    "hira": (peft.HiraConfig, {"r": 3}, IN, OUT),
    "gralora": (peft.GraloraConfig, {"r": 4, "alpha": 6}, IN, OUT),
    "gralora_hybrid": (
        peft.GraloraConfig,
        {"r": 4, "alpha": 6, "gralora_k": 4, "hybrid_r": 2},
        IN,
        OUT,
    ),
    "fourierft": (peft.FourierFTConfig, {"n_frequency": 40, "scaling": 20}, IN, OUT),
    "c3a": (peft.C3AConfig, {"block_size": 8}, IN, OUT),
    "shira": (peft.ShiraConfig, {"r": 2, "random_seed": 5}, IN, OUT),
}


class BlockDiag:
    """The library's CUDA kernel, without which it trains one factor of BOFT."""

    @staticmethod
    def apply(rotations):
        return torch.stack([torch.block_diag(*blocks) for blocks in rotations])


boft.get_fbd_cuda, boft.FastBlockDiag = lambda: True, BlockDiag


class Net(torch.nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.lin = torch.nn.Linear(d_in, d_out)

    def forward(self, x):
        return self.lin(x)


def state(model):
    """Return what the library saves, as arrays; projections stand above all modules."""
    found = peft.get_peft_model_state_dict(model)
    return {
        name.removeprefix("base_model.").removeprefix("model.lin."): value.clone()
        for name, value in found.items()
    }


def randomised(value, fresh):
    """Return random numbers that keep what must be positive or near to its start."""
    return fresh + 0.3 * torch.randn_like(value)


def reference(kind, settings, d_in, d_out):
    """Return all arrays of one case."""
    torch.manual_seed(0)
    base, x = Net(d_in, d_out), torch.randn(3, d_in)
    cotangent = torch.randn(3, d_out)
    arrays = {"x": x, "weight": base.lin.weight, "bias": base.lin.bias}
    arrays = {name: value.detach().clone() for name, value in arrays.items()}
    config = kind(target_modules=["lin"], **settings)
    model = peft.get_peft_model(base, config)
    model.eval()
    arrays |= {f"init_state.{name}": value for name, value in state(model).items()}
    for name, shape, numbers in wide(kind, settings):
        arrays |= {f"wide_shape.{name}": shape, f"wide.{name}": numbers}
    with torch.no_grad():
        for _, value in model.named_parameters():
            if value.requires_grad:
                value.copy_(randomised(value, value.clone()))
    y = model(x)
    (y * cotangent).sum().backward()
    arrays |= {"y": y.detach(), "cotangent": cotangent}
    arrays |= {f"state.{name}": value for name, value in state(model).items()}
    for name, value in model.named_parameters():
        if value.grad is not None:
            short = name.removeprefix("base_model.model.lin.").replace(".default", "")
            arrays[f"grad.{short}"] = value.grad
    merged = model.merge_and_unload()
    arrays["merged_weight"] = merged.lin.weight.detach()
    arrays["merged_bias"] = merged.lin.bias.detach()
    found = {name: value.numpy() for name, value in arrays.items()}
    return found | {"config_json": json.dumps(plain(config))}


def wide(kind, settings):
    """Yield shape, mean, deviation and largest size of a wide layer's fresh arrays."""
    model = peft.get_peft_model(Net(384, 256), kind(target_modules=["lin"], **settings))
    for name, value in state(model).items():
        value, shape = value.float(), torch.tensor(value.shape)
        yield name, shape, torch.stack([value.mean(), value.std(), value.abs().max()])


def plain(config):
    """Return what the library writes into a configuration file."""
    found = dataclasses.asdict(config)
    found = {k: sorted(v) if isinstance(v, set) else v for k, v in found.items()}
    return json.loads(json.dumps(found, default=str))


if __name__ == "__main__":
    names = sys.argv[2:] or [*CASES]
    for name in names:
        arrays = reference(*CASES[name])
        np.savez_compressed(Path(sys.argv[1], f"{name}_peft_linear.npz"), **arrays)
