"""Combine LoRA modules with the torch library `peft`, and record what comes out.

    pip install torch==2.13.0 transformers peft
    python tests/references/make_combine_references.py tests/files/goldens

Three adapters of rank 3 on one linear layer, one with a negative weight. Of the rules
that draw what they keep the draws are recorded: `RULE.masks.I`, those of all A before
those of all B, or those of the products. Nothing of peftjax is used here.
"""

import sys
from pathlib import Path

import numpy as np
import peft
import torch

ALPHAS, WEIGHTS, DENSITY = (3, 6, 6), (0.7, -0.4, 0.9), 0.5
RULES = {
    "svd": {},
    "ties": {},
    "ties_frequency": {"majority_sign_method": "frequency"},
    "ties_svd": {},
    "ties_svd_frequency": {"majority_sign_method": "frequency"},
    "magnitude_prune_svd": {},
    "dare_linear": {},
    "dare_linear_svd": {},
    "dare_ties": {},
    "dare_ties_frequency": {"majority_sign_method": "frequency"},
    "dare_ties_svd": {},
    "linear": {},
}


def adapted(use_rslora):
    """Return a model with three adapters."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    for i, alpha in enumerate(ALPHAS):
        config = peft.LoraConfig(
            r=3, lora_alpha=alpha, target_modules=["0"], use_rslora=use_rslora
        )
        if i == 0:
            model = peft.get_peft_model(model, config, "a0")
        else:
            model.add_adapter(f"a{i}", config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_()
    return model


def combine(model, rule, options):
    """Return the product that a rule gives, and what it drew."""
    masks, draw = [], torch.bernoulli

    def recorded(*args, **kwargs):
        masks.append(draw(*args, **kwargs))
        return masks[-1]

    torch.bernoulli = recorded
    name = rule.removesuffix("_frequency")
    model.base_model.add_weighted_adapter(
        ["a0", "a1", "a2"],
        list(WEIGHTS),
        rule,
        name,
        density=None if name in ("svd", "linear") else DENSITY,
        **options,
    )
    torch.bernoulli = draw
    with torch.no_grad():
        delta = model.base_model.model[0].get_delta_weight(rule)
    return delta.numpy(), [mask.numpy().astype(np.uint8) for mask in masks]


if __name__ == "__main__":
    record = {"alphas": ALPHAS, "weights": WEIGHTS, "density": DENSITY}
    model = adapted(use_rslora=False)
    layer = model.base_model.model[0]
    for i in range(3):
        for part in "AB":
            value = getattr(layer, f"lora_{part}")[f"a{i}"].weight.detach().numpy()
            record[f"adapter.a{i}.lora_{part}.weight"] = value
    for rule, options in RULES.items():
        delta, masks = combine(model, rule, options)
        record[f"{rule}.delta"] = delta
        for i, mask in enumerate(masks):
            record[f"{rule}.masks.{i}"] = mask
    delta, _ = combine(adapted(use_rslora=True), "linear", {})
    record["rslora.linear.delta"] = delta
    np.savez_compressed(Path(sys.argv[1]) / "combine_peft.npz", **record)
