"""Reference arrays from the authors' own code, where the torch library has no method.

    git clone https://github.com/MohammadrezaBanaei/LoRA-XS
    git clone https://github.com/JieShibo/PETL-ViT
    git clone https://github.com/luogen1996/RepAdapter
    pip install torch peft scikit-learn
    python tests/references/make_author_references.py FOLDER tests/files/goldens

FOLDER holds the three clones. Their functions run as they are on one layer each; what
they import only to train (timm, avalanche) is stood in for. Nothing of peftjax is used.
"""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import peft
import torch


def tensor(*shape, scale=0.5):
    return scale * torch.randn(*shape)


def lora_xs():
    """Return LoRA-XS on one linear layer."""
    module = importlib.import_module("utils.initialization_utils")
    base = torch.nn.Sequential(torch.nn.Linear(12, 10))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"])
    model, x, cotangent = (
        peft.get_peft_model(base, config),
        tensor(4, 12),
        tensor(4, 10),
    )
    settings = {"half_init_dec": False, "replacement_module_random_init": False}
    settings |= {"r_squared": True, "reconstr_mode": "separated"}
    settings["svd"] = {"rank": 3, "n_iter": 10, "random_state": 42}
    configs = {"default": config}
    module.find_and_initialize(model, configs, "default", "svd", settings, None)
    layer = model.base_model.model[0]
    layer._active_adapter = ["default"]  # a list in the release that they use
    latent = layer.default_lora_latent_mapping.weight
    start = latent.detach().clone()
    with torch.no_grad():
        latent.copy_(tensor(3, 3))
    y = layer(x)
    (y * cotangent).sum().backward()
    return {
        "x": x,
        "weight": layer.get_base_layer().weight,
        "bias": layer.get_base_layer().bias,
        "a": layer.lora_A.default.weight.T,
        "b": layer.lora_B.default.weight.T,
        "r": latent.T,
        "start": start,
        "y": y,
        "cotangent": cotangent,
        "grad.r": latent.grad.T,
    }


def fact(form):
    """Return FacT's deltas of attention and of the MLP, on layers of zeros."""
    module = importlib.import_module(f"fact_{form}")
    width, rank = 12, 3
    vit = SimpleNamespace(
        FacTu=torch.nn.Linear(width, rank, bias=False),
        FacTv=torch.nn.Linear(rank, width, bias=False),
    )
    torch.nn.init.normal_(vit.FacTv.weight)
    if form == "tk":
        vit.FacTc = torch.nn.Parameter(tensor(rank, rank, rank))
        vit.FacTp = torch.nn.Parameter(tensor(rank, 12))
    module.vit = vit
    x, seen = tensor(2, 4, width), {}

    def zeros(name, columns):
        layer = torch.nn.Linear(width, columns)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        return layer

    attention = SimpleNamespace(
        qkv=zeros("qkv", 3 * width),
        proj=lambda x: torch.zeros(*x.shape),
        num_heads=1,
        scale=1.0,
        s=0.7,
        dp=lambda x: x,
        idx=0,
        attn_drop=lambda x: seen.setdefault("attention", x),
        proj_drop=lambda x: x,
    )
    parts = {}
    if form == "tt":
        for name in ("q", "k", "v", "proj"):
            layer = torch.nn.Linear(rank, rank, bias=False)
            parts[name] = layer.weight
            setattr(attention, f"{name}_FacTs", layer)
    # qkv is seen where it is added up
    original = torch.Tensor.__iadd__
    added = []

    def spy(self, other):
        added.append(other.detach().clone())
        return original(self, other)

    torch.Tensor.__iadd__ = spy
    try:
        module.fact_forward_attn(attention, x)
        mlp = SimpleNamespace(
            fc1=lambda x: torch.zeros(*x.shape[:-1], 4 * width),
            fc2=lambda x: torch.zeros(*x.shape[:-1], width),
            act=lambda x: seen.setdefault("hidden", tensor(2, 4, 4 * width)),
            drop=lambda x: x,
            dp=lambda x: x,
            dim=rank,
            s=0.7,
            idx=4,
        )
        if form == "tt":
            mlp.fc1_FacTs = torch.nn.Linear(rank, 4 * rank, bias=False)
            mlp.fc2_FacTs = torch.nn.Linear(4 * rank, rank, bias=False)
            parts |= {"fc1": mlp.fc1_FacTs.weight, "fc2": mlp.fc2_FacTs.weight}
            module.fact_forward_mlp(mlp, x)
    finally:
        torch.Tensor.__iadd__ = original
    found = {"x": x, "u": vit.FacTu.weight.T, "v": vit.FacTv.weight.T, "qkv": added[0]}
    if form == "tt":
        found |= {"fc1": added[2], "fc2": added[3], "hidden": seen["hidden"]}
        found |= {f"sigma.{name}": value.T for name, value in parts.items()}
    else:
        found |= {"core": vit.FacTc, "p": vit.FacTp}
    return found


def repadapter():
    """Return RepAdapter in front of a linear layer, and merged into it."""
    module = importlib.import_module("repadapter")
    adapter, layer = module.RepAdapter(12, 4, 2, 0.7), torch.nn.Linear(12, 10)
    start = {f"start.{name}": v.clone() for name, v in adapter.named_parameters()}
    adapter.eval()
    with torch.no_grad():
        for value in adapter.parameters():
            value.copy_(tensor(*value.shape))
    x, cotangent = tensor(2, 5, 12), tensor(2, 5, 10)
    y = layer(adapter(x))
    (y * cotangent).sum().backward()
    up = module.sparse2dense(adapter.conv_B.weight.squeeze(), 2)
    before = module.reparameterize(
        adapter.conv_A.weight.squeeze().T,
        up.T,
        adapter.conv_A.bias,
        adapter.conv_B.bias,
        0.7,
        do_residual=True,
    )
    after = module.reparameterize(before[0].T, layer.weight.T, before[1], layer.bias)
    found = {"x": x, "weight": layer.weight, "bias": layer.bias, "y": y}
    found |= {"cotangent": cotangent, **start}
    found |= {"merged_weight": after[0], "merged_bias": after[1]}
    for name, value in adapter.named_parameters():
        found |= {name: value, f"grad.{name}": value.grad}
    return found


if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    for name in ("timm", "timm.models", "timm.scheduler", "timm.scheduler.cosine_lr"):
        sys.modules[name] = MagicMock()
    for name in ("avalanche", "evaluation", "metrics", "accuracy"):
        parents = "avalanche.evaluation.metrics.accuracy".split(name)[0]
        sys.modules[parents + name] = MagicMock()
    sys.modules["vtab"] = MagicMock(__all__=[])
    cases = {
        "loraxs": ("LoRA-XS", lora_xs),
        "fact_tt": ("PETL-ViT/FacT", lambda: fact("tt")),
        "fact_tk": ("PETL-ViT/FacT", lambda: fact("tk")),
        "repadapter": ("RepAdapter", repadapter),
    }
    for name, (clone, make) in cases.items():
        torch.manual_seed(0)
        sys.path.insert(0, str(folder / clone))
        arrays = {key: value.detach().numpy() for key, value in make().items()}
        sys.path.pop(0)
        np.savez_compressed(out / f"{name}_official.npz", **arrays)
