"""Your own texts, `data/reviews.csv` with the columns text and label, by an encoder."""

from configs import defaults


def config(task="reviews", method="lora", seed=0):
    return defaults.own_text(task, method, seed, model="checkpoints/roberta-base")


get_config = defaults.door(config)
