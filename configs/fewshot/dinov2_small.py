"""Few-shot curves on a DINOv2 ViT-S/14: 1 to 16 images of each class.

`python -m experiments.table --config configs/fewshot/dinov2_small.py --workdir DIR`

A task is a set and its shots, `eurosat5-4`. Each seed of a run draws its own images
from those that are not tested on, and what it draws for k is among what it draws for
2k, so that a curve's points differ by the images added. The test split is one for all.
`curves.png` has a panel per set: means, and bands of one standard deviation over seeds.

No paper reports this model. As in ELEVATER, 50 epochs; batches of 32, or all images
where there are fewer. Learning rates are those of `configs.defaults`; choose better
with `experiments.sweep`, which holds a fifth of the shots out.

On one CPU core, small, two seeds and untuned rates (`results/fewshot_dinov2_56px.md`):
`--config.data.size=56 --config.train.epochs=20 --config.train.eval_epochs=20` and the
tasks of 1, 4 and 16 shots; `--config.look=False` leaves the pictures out.
"""

from ml_collections import ConfigDict

from configs import defaults
from experiments.arguments import known

# Set: its folder or file under `paths.data`, and its classes.
SETS = {"eurosat5": ("eurosat5_1k", 5), "mnist": ("mnist_1k", 10)}
SHOTS = (1, 2, 4, 8, 16)
CURVES = {name: {f"{name}-{k}": k for k in SHOTS} for name in SETS}
TASKS = {task: (name, k) for name, own in CURVES.items() for task, k in own.items()}
METHODS = ("linear", "lora", "hydra", "glora", "hra")


def config(task: str = "eurosat5-4", method: str = "lora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    name, shots = TASKS[known(task, TASKS, "task")]
    file, classes = SETS[name]
    known(method, METHODS, "method")
    model = defaults.DINOV2_SMALL
    return defaults.own_images(
        task,
        method,
        seed,
        "checkpoints/dinov2",
        **{
            **model,
            "name": "fewshot_dinov2_small",
            "look": True,
            "data": {**model["data"], "set": file, "shots": shots},
            "train": {
                "epochs": 50,
                "batch": min(32, shots * classes),
                "eval_batch": 100,
                "eval_epochs": 50,
            },
            "tasks": TASKS,
            "methods": METHODS,
            "table": {"curves": CURVES},
        },
    )


get_config = defaults.door(config)
