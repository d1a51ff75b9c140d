"""GLoRA's domain shift: 16 shots of ImageNet, tested on V2, Sketch, A and R too.

`python -m experiments.table --config configs/imagenet_shift.py --dry-run`

A run is trained once and is five columns of the table. `paths.data` holds
`imagenet/train/<wnid>/<image>` and `imagenet/test/<wnid>`, the 50,000 validation
images, and the other sets as they are released, `imagenet_sketch/<wnid>`,
`imagenet_v2/0` to `999`, `imagenet_a` and `imagenet_r`, whose 200 classes are the only
ones that can be answered there, as usual (arXiv 1907.07174, 2006.16241).
`--config.paths.model` is the first release's `ViT-B_16.npz`.

The recipe is that of `configs/fewshot/vit_b16.py`, with its reservations; the published
numbers are those of GLoRA and, of the others, NOAH's, one run each.
"""

from ml_collections import ConfigDict

from configs import defaults
from configs.fewshot import vit_b16
from experiments.arguments import known

SHOTS, CLASSES, EPOCHS = 16, 1000, 100
TESTED = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
METHODS = {"full": "full", **vit_b16.METHODS}
PUBLISHED = {
    "file": "domain_generalisation_glora.csv",
    "backbone": "ViT-B/16 (ImageNet-21k supervised)",
    "methods": {
        "full": "Full fine-tuning",
        "linear": "Linear probing",
        "lora": "LoRA",
        vit_b16.SEARCHED: "GLoRA",
    },
    "tasks": {"imagenet": "imagenet_16shot_source"},
}


def config(task: str = "imagenet", method: str = "glora", seed: int = 0) -> ConfigDict:
    """Return the configuration of one run.

    Raises:
        UnknownName: an unknown task or method; the nearest valid one is named.
    """
    known(task, ["imagenet"], "task")
    known(method, (*METHODS, vit_b16.SEARCHED), "method")
    full = method == "full"
    training = vit_b16.recipe(EPOCHS, 64)
    if full:
        training["optim"].update(lr=1e-5, floor=1e-6)
    return defaults.run(
        name="imagenet_shift",
        family="shots",
        task=task,
        method=method,
        seed=seed,
        rules=vit_b16.rules(method),
        model=vit_b16.model(method, CLASSES),
        data={**vit_b16.data(SHOTS), "tested": TESTED},
        **training,
        grid=defaults.GRID,
        tasks=(task,),
        methods=METHODS,
        **({"search": vit_b16.SEARCH} if method == vit_b16.SEARCHED else {}),
        table={
            "all_methods": (*METHODS, vit_b16.SEARCHED),
            "examined": TESTED,
            "published": PUBLISHED,
        },
    )


get_config = defaults.door(config)
