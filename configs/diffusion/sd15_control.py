"""Stable Diffusion 1.5 drawing from a signal: HRA's table (arXiv 2405.17484).

`python -m experiments.table --config configs/diffusion/sd15_control.py --dry-run`

Weights: `--config.paths.model=FOLDER`, a pipeline. Data: `--config.paths.data` holds
`segm/train.jsonl` and `segm/test.jsonl`, lines of image, signal and prompt
(`peftjax.data.pairs`); `task=` names another folder, `canny` or `landmark`. Scores:
`paths.clip`, `paths.dino`.

The released recipe: a signal encoder trained beside the adapters, AdamW with rate 9e-4
and decay 0.01, eight images on each of eight GPUs, at 512 pixels, HRA of rank 8 on
attention and the first layer of every MLP; λ as in the table. Ours: 20 epochs of
ADE20K's 20,210 images, clipping at 1, the same rate for every method but full
fine-tuning, and the sampler. Photographs and signals are cut to their middle. The
paper's own scores compare the signal of a generated image with the given one, by
networks that are not here (segments, landmarks) or by Canny's edges.
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from configs.diffusion.common import OPTIM, SIGNAL, adapted, hra, oft
from experiments.arguments import known
from peftjax.presets import CONTROL

TASKS = {
    "segm": "mIoU, mAcc and aAcc of segments",
    "canny": "IoU and F1 of edges",
    "landmark": "error of landmarks",
}
METHODS = {
    "full": (1e-5, ((r".*", pj.Full()),)),
    "lora": (9e-4, (*adapted(pj.LoRA(rank=4, alpha=4.0), CONTROL), *SIGNAL)),
    "oft": (9e-4, (*oft(CONTROL), *SIGNAL)),
    "hra0": (9e-4, (*adapted(hra(8), CONTROL), *SIGNAL)),
    "hra_lambda": (9e-4, (*adapted(hra(8, penalty_weight=1e-3), CONTROL), *SIGNAL)),
    "hra_inf": (9e-4, (*adapted(hra(8, orthogonal=True), CONTROL), *SIGNAL)),
}
HRA = dict.fromkeys(("hra0", "hra_lambda", "hra_inf"), "HRA r=8")
PUBLISHED = {
    "file": "diffusion_hra.csv",
    "backbone": "Stable Diffusion 1.5, control",
    "methods": {"lora": "LoRA r=4", "oft": "OFT b=4", **HRA},
}
NOTES = {
    "oft": "the paper counts whole blocks, of which a rotation has half",
    **dict.fromkeys(HRA, "printed with its last digit cut, not rounded"),
}


def config(task: str = "segm", method: str = "hra0", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, TASKS, "task")
    lr, rules = METHODS[known(method, METHODS, "method")]
    return defaults.run(
        name="sd15_control",
        family="control",
        task=task,
        method=method,
        seed=seed,
        rules=rules,
        model={"dtype": "float32", "remat": True},
        data={
            "size": 512,
            "files": {part: f"{task}/{part}.jsonl" for part in ("train", "test")},
            "examples": 20_210,
            "shown": 8,
            "unscored": TASKS[task],
        },
        sampler={"steps": 50, "guidance": 9.0},
        train={"epochs": 20, "batch": 64, "eval_batch": 8, "eval_epochs": 2},
        optim={**OPTIM, "lr": lr},
        grid=(1e-4, 9e-4, 3e-3),
        tasks=("segm",),
        methods=METHODS,
        paths={"clip": "", "dino": ""},
        table={
            "all_tasks": tuple(TASKS),
            "seeds": (0,),
            "published": PUBLISHED,
            "notes": NOTES,
        },
    )


get_config = defaults.door(config)
