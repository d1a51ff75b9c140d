"""Adapt a small DiT, trained to draw the digits 0 to 7, to draw 8 and 9.

`python -m experiments.table --config configs/diffusion/dit_digits.py`

Data: scikit-learn's scans of 8x8 pixels, 20 of each of the two digits. `samples/` of a
run's folder shows what the model draws during training, from the same noise, and
`.cache/dit_digits-base.png` what the base does.

Rates: of the six of the grid, for every method, the one of the best mean accuracy over
three seeds on pictures drawn from other noise than the table's; seeds, too, are others
(`experiments.sweep`, `results/dit_digits_sweep.jsonl`).
"""

from ml_collections import ConfigDict

import peftjax as pj
from configs import defaults
from experiments.arguments import known

LINEAR = r"blocks_\d+/(attn/(qkv|proj)|mlp/fc[12]|adaln)/kernel"
CLASSES = (r"y_embed/embedding", pj.Full())
MODEL = {
    "image_size": 8,
    "patch_size": 2,
    "channels": 1,
    "width": 64,
    "depth": 4,
    "num_heads": 4,
    "mlp_dim": 256,
    "num_classes": 10,
}
NOISE = {
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "clip_sample": True,
}
OPTIM = {"schedule": "cosine", "weight_decay": 0.0, "warmup": 0.05, "clip": 1.0}
METHODS = {
    "full": (1e-2, ((r".*", pj.Full()),)),
    "lora": (1e-2, ((LINEAR, pj.LoRA(rank=4, alpha=8.0)), CLASSES)),
    "hra": (3e-2, ((LINEAR, pj.HRA(rank=8)), CLASSES)),
    "oft": (3e-2, ((LINEAR, pj.OFT(block=8)), CLASSES)),
}


def config(task: str = "digits", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, ["digits"], "task")
    lr, rules = METHODS[known(method, METHODS, "method")]
    return defaults.run(
        name="dit_digits",
        family="diffusion",
        task=task,
        method=method,
        seed=seed,
        rules=rules,
        model=MODEL,
        pretrain={
            "classes": (0, 1, 2, 3, 4, 5, 6, 7),
            "split_seed": 0,
            "epochs": 130,
            "batch": 64,
            "seed": 0,
            "noise": NOISE,
            **OPTIM,
            "lr": 2e-3,
        },
        data={"classes": (8, 9), "shots": 20, "samples": 50, "split_seed": 0},
        sampler={"steps": 25, "guidance": 2.0},
        train={"epochs": 150, "batch": 40, "eval_batch": 100, "eval_epochs": 75},
        optim={**OPTIM, "lr": lr},
        grid=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        tasks=("digits",),
        methods=METHODS,
    )


get_config = defaults.door(config)
