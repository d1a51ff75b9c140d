"""GLoRA's search beside LoRA and fixed GLoRA, by a DINOv2 ViT-S/14 at 98 pixels."""

from configs import defaults

SEARCH = {"limit": 500_000, "population": 20, "generations": 4}
SEARCH |= {"parents": 5, "mutants": 10, "crossovers": 10}


def config(task="caltech101_1k_64px", method="glora_search", seed=0):
    given = {
        **defaults.DINOV2_SMALL,
        "train": {"epochs": 5, "eval_batch": 200},
        "optim": {"lr": 2e-3},
        "search": SEARCH,
    }
    return defaults.own_images(task, method, seed, model="checkpoints/dinov2", **given)


get_config = defaults.door(config)
