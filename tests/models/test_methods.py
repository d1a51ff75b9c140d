"""Every method on every family: fast everywhere, scanned layers as unrolled ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.methods.composition import Composition
from peftjax.models import load
from peftjax.models.layers import stack_layers
from peftjax.presets import rules
from tests.helpers.model_cases import MODELS, close

pytestmark = pytest.mark.slow

FIRST = {
    "query": pj.LoRA(rank=2, alpha=3.0),
    "key": pj.DoRA(rank=2, alpha=3.0),
    "value": pj.HydraLoRA(rank=2, heads=3, alpha=5.0),
    "output": pj.HRA(rank=2),
    "up": pj.Hydra(rank=2),
    "down": pj.GLoRA(rank=2),
}
SECOND = {
    "query": pj.OFT(block=4),
    "key": pj.IA3(),
    "value": Composition(modules=2, rank=2),
    "output": pj.SSF(),
    "up": pj.GLoRASupernet(rank=2),
    "down": pj.IA3(side="input"),
}
IDS = jnp.array([[3, 14, 15, 9, 2, 6], [5, 35, 8, 9, 7, 9]])
IMAGES = jax.random.normal(jax.random.key(3), (2, 16, 16, 3))
INPUTS = {"bert": IDS, "roberta": IDS, "llama3": IDS, "flan_t5": IDS, "vit": IMAGES}
LANGUAGE_MODELS = {"llama3": "llama", "flan_t5": "t5"}  # and what presets call them


def perturbed(adapters):
    """Move every floating leaf off its start."""
    rng = np.random.default_rng(0)

    def move(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype)

    return jax.tree.map(move, adapters)


@pytest.mark.parametrize("methods", [FIRST, SECOND], ids=["first", "second"])
@pytest.mark.parametrize("name", INPUTS)
def test_scanned_and_unrolled_layers_give_the_same(name, methods):
    x, results, base = INPUTS[name], [], None
    chosen = {}
    for part, method in methods.items():
        family = LANGUAGE_MODELS.get(name, name)
        chosen |= rules(family, method, parts=(part,), head=False)
    for scan in (False, True):
        options = {"fused_qkv": False} if name == "vit" else {}
        model, variables = load(
            MODELS / name,
            head=None if name in LANGUAGE_MODELS else 3,
            scan_layers=scan,
            **options,
        )
        peft = pj.adapt(model.apply, variables, x, rules=chosen, strict=True)
        assert all(site.fast for site in peft.sites)
        assert len({type(site.method) for site in peft.sites}) >= 5
        if not scan:
            adapters = perturbed(peft.init(jax.random.key(0), variables))
            base = model.apply(variables, x)
        else:
            adapters = stack_layers(adapters, "blocks" if name == "vit" else "layers")
        results.append(jax.jit(peft.apply)(variables, adapters, x))
    close(results[1], results[0])
    assert np.abs(results[0] - base).max() > 1e-3, "the adapters have no effect"
