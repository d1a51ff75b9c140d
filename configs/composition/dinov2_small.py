"""Composed modules of other sets against training anew, on a DINOv2 ViT-S/14.

First a module of each set, which is an adapter that a run of LoRA on all its images
left, then the table, whose `weights.png` shows what was learned of which module:

    for NAME in eurosat5 mnist cifar10 caltech101:
        python -m experiments.finetune --config
            configs/composition/dinov2_small.py:task=NAME --workdir runs/upstream/NAME
    python -m experiments.table --config configs/composition/dinov2_small.py

`uniform` and `learned` (arXiv 2402.15414) average the modules of the three sets that a
task is not of; they train the head and, `learned`, three numbers a layer. A module that
has seen the task's data is refused. `lora` and `full` start anew, `linear` trains the
head alone. A task is a set and its images of each class, `mnist-5`, or all of a set's,
`mnist`; Caltech-101 has too few of a class for shots, so it lends a module only.

Ranks, shots and rates are ours: the paper's were not at hand. The head learns at ten
times the rate of the rest wherever more than the head is trained.
"""

from typing import Any

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from experiments.arguments import known
from peftjax import presets

# Set: its folder or file under `paths.data`, and its classes.
SETS = {
    "eurosat5": ("eurosat5_1k", 5),
    "mnist": ("mnist_1k", 10),
    "cifar10": ("cifar10_1k", 10),
    "caltech101": ("caltech101_1k_64px", 102),
}
TARGETS = ("eurosat5", "mnist", "cifar10")
SHOTS = (1, 2, 5, 10, 20)
CURVES = {name: {f"{name}-{k}": k for k in SHOTS} for name in TARGETS}
FEW = {task: (name, k) for name, own in CURVES.items() for task, k in own.items()}
TASKS = {**FEW, **{name: (name, 0) for name in SETS}}
RANK = 16
LEARNED = {  # rate of all but the head
    "full": ("full", 3e-5),
    "linear": ("linear", 1e-3),
    "lora": (pj.LoRA(rank=RANK, alpha=float(RANK)), 5e-4),
    "uniform": (pj.Composition(3, RANK, "uniform"), 1e-3),
    "learned": (pj.Composition(3, RANK, "learned"), 1e-2),
}
HEAD_RATE = {"full": 3e-4, "lora": 5e-3, "learned": 1e-3}


def config(task: str = "mnist-5", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    name, shots = TASKS[known(task, TASKS, "task")]
    file, classes = SETS[name]
    adapter, lr = LEARNED[known(method, LEARNED, "method")]
    optim = {"schedule": "cosine", "lr": lr, "weight_decay": 1e-4, "warmup": 0.1}
    if method in HEAD_RATE:
        optim["groups"] = ((r"head/.*", HEAD_RATE[method] / lr),)
    others = tuple(other for other in SETS if other != name)
    composed = isinstance(adapter, pj.Composition)
    modules: dict[str, Any] = {"upstream": others} if composed else {}
    model = defaults.DINOV2_SMALL
    return defaults.run(
        name="composition_dinov2_small",
        family="own_images",
        task=task,
        method=method,
        seed=seed,
        rules=tuple(presets.rules("dinov2", adapter).items()),
        model=model["options"],
        data={
            **model["data"],
            "normalisation": "imagenet",
            "split_seed": 0,
            "set": file,
            "shots": shots,
        },
        train={
            "epochs": 50 if shots else 10,
            "batch": min(32, shots * classes or 32),
            "eval_batch": 100,
            "eval_epochs": 50,
        },
        optim=optim,
        grid=defaults.GRID,
        tasks=FEW,
        methods=LEARNED,
        paths={
            "model": "checkpoints/dinov2",
            "upstream": "runs/upstream" if composed else "",
        },
        table={"curves": CURVES, "all_tasks": tuple(TASKS)},
        **modules,
    )


get_config = defaults.door(config)
