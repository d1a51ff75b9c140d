"""Your own images, `data/photos/<class>/<image>` or `data/photos.npz`, by a ViT."""

from configs import defaults


def config(task="photos", method="lora", seed=0):
    return defaults.own_images(task, method, seed, model="checkpoints/vit-base")


get_config = defaults.door(config)
