"""A small ViT with a supernet on every linear layer and a trained head."""

import jax

import peftjax as pj
from peftjax.models.vit import ViT
from peftjax.search import Space
from peftjax.testing import perturb

LINEAR = r"blocks_\d+/(attn/(qkv|proj)|mlp/fc\d)/kernel"


def drawn(peft, adapters, key):
    """Return adapters with structures drawn by the key."""
    space = Space(peft)
    return space.place(adapters, space.sample(key))


def supernet():
    """Return model, variables, images, plan and adapters off their start."""
    model = ViT(8, 4, width=16, depth=2, num_heads=2, mlp_dim=24, num_classes=3)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = model.init(jax.random.key(1), images)
    rules = {LINEAR: pj.GLoRASupernet(rank=3), "head/.*": pj.Full()}
    peft = pj.adapt(model.apply, variables, images, rules=rules, strict=True)
    adapters = perturb(peft, jax.jit(peft.init)(jax.random.key(2)))
    return model, variables, images, peft, adapters
