"""A chosen structure of the supernet becomes fixed methods that compute the same."""

import jax
import pytest

import peftjax as pj
from peftjax.models.vit import ViT
from peftjax.testing import error
from tests.helpers import supernet_case

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def supernet():
    return supernet_case.supernet()


def test_to_glora_computes_the_same_with_the_official_count(supernet):
    model, variables, images, peft, adapters = supernet
    for seed in range(3):
        chosen = supernet_case.drawn(peft, adapters, jax.random.key(seed))
        subnet = pj.to_glora(peft, chosen)
        fixed = pj.adapt(
            model.apply, variables, images, rules=subnet.rules, strict=True
        )
        expected = jax.jit(peft.apply)(variables, chosen, images)
        found = jax.jit(fixed.apply)(variables, subnet.adapters, images)
        assert error(found, expected) < 1e-5
        for site in fixed.sites:
            sizes = sum(a.size for a in subnet.adapters[site.path].values())
            assert site.trainable == sizes


def test_stacked_layers_cannot_be_fixed():
    model = ViT(8, 4, width=16, depth=2, num_heads=2, mlp_dim=24, scan_layers=True)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(1), images)
    rules = {"blocks/mlp/fc1/kernel": pj.GLoRASupernet(rank=3)}
    peft = pj.adapt(model.apply, variables, images, rules=rules)
    with pytest.raises(ValueError, match="blocks/mlp/fc1/kernel: .*unstack"):
        pj.to_glora(peft, peft.init(jax.random.key(0)))


def test_what_sites_share_stays_with_them(supernet):
    model, variables, images, _, _ = supernet
    rules = {
        "blocks_0/mlp/fc1/kernel": pj.GLoRASupernet(rank=3),
        "blocks_1/mlp/fc1/kernel": pj.Composition(modules=2, rank=2, share=True),
    }
    peft = pj.adapt(model.apply, variables, images, rules=rules)
    fresh = peft.init(jax.random.key(0))
    adapters = supernet_case.drawn(peft, fresh, jax.random.key(3))
    own = peft.sites[0].trainable
    assert f"{own + 2:,} trainable parameters" in peft.summary()
    subnet = pj.to_glora(peft, adapters)
    fixed = pj.adapt(model.apply, variables, images, rules=subnet.rules)
    found = fixed.apply(variables, subnet.adapters, images)
    assert error(found, peft.apply(variables, adapters, images)) < 1e-5
