"""GLoRA's search beside LoRA and fixed GLoRA, by a DINOv2 ViT-S/14 at 98 pixels."""

from configs import defaults

SEARCH = {"limit": 500_000, "population": 20, "generations": 10}
SEARCH |= {"parents": 5, "mutants": 10, "crossovers": 10}
# A supernet of which each step draws another structure bears less: at 2e-3 its loss
# stays at that of chance.
RATES = {"glora_search": 3e-4, "lora": 1e-3, "glora": 1e-3}


def config(task="caltech101_1k_64px", method="glora_search", seed=0):
    given = {
        **defaults.DINOV2_SMALL,
        "train": {"epochs": 5, "eval_batch": 200},
        "optim": {"lr": RATES[method]} if method in RATES else {},
        "search": SEARCH,
    }
    return defaults.own_images(task, method, seed, model="checkpoints/dinov2", **given)


get_config = defaults.door(config)
