"""GLoRA's few shots: five sets, 1 to 16 images of a class, a ViT-B/16 of ImageNet-21k.

`python -m experiments.table --config configs/fewshot/vit_b16.py --dry-run`

`--config.paths.model` is the first release's `ViT-B_16.npz`; `paths.data` holds each
set as `own_images` reads it, `food101/train/<class>` and `food101/test/<class>` for one
(NOAH's splits, which the paper takes). A task is a set and its shots, `food101-4`; each
seed draws its own, and `curves.png` has a panel per set.

Of the authors' code only the part that reads data is whole: random crops, mirroring,
RandAugment and erasing while training (`peftjax.data.augment`), 256 by 256 pixels of
which the middle 224 are seen while testing. Rates, decay and batch are those of their
VTAB-1k recipe; 100 epochs are NOAH's, recalled, not read. `glora` is a fixed structure,
the largest subnet; `--methods glora_search` is the paper's method, a supernet and its
search, which takes two shots or more, since a fifth of them is searched on. The
published numbers are GLoRA's own and, of LoRA, NOAH's, one run each.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from experiments.arguments import known
from peftjax import presets

# Set: its classes.
SETS = {
    "food101": 101,
    "stanford_cars": 196,
    "oxford_flowers102": 102,
    "fgvc_aircraft": 100,
    "oxford_pets": 37,
}
SHOTS = (1, 2, 4, 8, 16)
CURVES = {name: {f"{name}-{k}": k for k in SHOTS} for name in SETS}
TASKS = {task: (name, k) for name, own in CURVES.items() for task, k in own.items()}
METHODS = {
    "linear": "linear",
    "lora": pj.LoRA(rank=8, alpha=16.0),
    "hydra": pj.Hydra(rank=2, branch_bias=True),
    "glora": pj.GLoRA(rank=4),
    "hra": pj.HRA(rank=8),
}
SEARCHED = "glora_search"
SEARCH = {"limit": 440_000}  # as configs/vtab/vit_b16.py has it
SIZE = 224
PUBLISHED = {
    "file": "fewshot_glora.csv",
    "backbone": "ViT-B/16 (ImageNet-21k supervised)",
    "methods": {"lora": "LoRA", SEARCHED: "GLoRA"},
    "tasks": {task: name for task, (name, _) in TASKS.items()},
    "metrics": {task: f"top1@{k}shot" for task, (_, k) in TASKS.items()},
}


def rules(method: str) -> tuple:
    """Return the rules of a method; LoRA is on q and v, hence three matrices."""
    adapter = METHODS.get("glora" if method == SEARCHED else method, method)
    return tuple(presets.rules("vit", adapter).items())


def model(method: str, classes: int) -> dict:
    """Return the fields of the ViT."""
    return {
        "image_size": SIZE,
        "patch_size": 16,
        "width": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_dim": 3072,
        "num_classes": classes,
        "drop_path": 0.1,
        "fused_qkv": method != "lora",
    }


def recipe(epochs: int, batch: int) -> dict:
    """Return what GLoRA's VTAB-1k recipe says of training."""
    return {
        "train": {
            "epochs": epochs,
            "batch": batch,
            "eval_batch": 64,
            "eval_epochs": epochs,
        },
        "optim": {
            "schedule": "epoch_cosine",
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "warmup": 10,
            "period": epochs,
            "start": 1e-6,
            "floor": 1e-5,
        },
    }


def data(shots: int) -> dict:
    """Return how images are drawn and seen."""
    seen = {"size": SIZE, "view": "margin", "augment": "cropped"}
    return {"shots": shots, "normalisation": "imagenet", "split_seed": 0, **seen}


def config(task: str = "food101-4", method: str = "glora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    name, shots = TASKS[known(task, TASKS, "task")]
    known(method, (*METHODS, SEARCHED), "method")
    left = shots - max(1, shots // 5) if method == SEARCHED else shots
    return defaults.run(
        name="fewshot_vit_b16",
        family="shots",
        task=task,
        method=method,
        seed=seed,
        rules=rules(method),
        model=model(method, SETS[name]),
        **{"data": {**data(shots), "set": name}},
        **recipe(100, min(64, max(1, left) * SETS[name])),
        grid=defaults.GRID,
        tasks=TASKS,
        methods=METHODS,
        **({"search": SEARCH} if method == SEARCHED else {}),
        table={
            "all_methods": (*METHODS, SEARCHED),
            "curves": CURVES,
            "published": PUBLISHED,
        },
    )


get_config = defaults.door(config)
