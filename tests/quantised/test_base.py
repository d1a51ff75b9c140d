"""Adapters over a base in codes: the values of the decoded base, the codes kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.models.vit import ViT
from peftjax.parallel.mesh import make_mesh
from peftjax.testing import error, perturb
from peftjax.training.losses import cross_entropy
from peftjax.training.state import create_state
from peftjax.training.step import make_step

pytestmark = pytest.mark.slow

NF4 = pj.NF4(group=32, double=True)
BLOCKS = r"blocks.*/(attn|mlp)/.*kernel"
QKV = r"blocks.*/attn/qkv/kernel"
X = jax.random.normal(jax.random.key(5), (4, 16, 16, 3))


def vit(**options):
    size = {"image_size": 16, "patch_size": 8, "width": 32, "depth": 2, "mlp_dim": 64}
    model = ViT(num_heads=4, num_classes=10, **size, **options)
    return model, jax.jit(model.init)(jax.random.key(0), X)


def gradient(peft, variables, adapters, *args):
    trainable, frozen = peft.partition(adapters)

    def loss(trainable):
        output = peft.apply(variables, peft.combine(trainable, frozen), *args)
        return (output**2).sum()

    return jax.jit(jax.value_and_grad(loss))(trainable)


def same(left, right, within=1e-5):
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert error(one, other) < within


@pytest.mark.parametrize("options", [{}, {"scan_layers": True}, {"remat": True}])
@pytest.mark.parametrize("method", [pj.LoRA(2, alpha=6.0), pj.DoRA(2, alpha=6.0)])
def test_as_over_the_decoded_base(options, method):
    model, variables = vit(**options)
    coded = pj.quantise(variables, {BLOCKS: NF4})
    plain = pj.dequantise(coded)
    found, right = (
        pj.adapt(model.apply, v, X, rules={QKV: method}) for v in (coded, plain)
    )
    assert all(site.fast for site in found.sites)
    fresh = jax.jit(found.init)(jax.random.key(1))
    adapters = perturb(found, fresh, 0.02)
    same(fresh, jax.jit(right.init)(jax.random.key(1)))
    same(
        gradient(found, coded, adapters, X),
        gradient(right, plain, adapters, X),
    )
    merged = pj.dequantise(found.merge(coded, adapters))
    same(merged, right.merge(plain, adapters))
    y = jax.jit(found.apply)(coded, adapters, X)
    same(y, jax.jit(model.apply)(merged, X))


class Odd(nn.Module):
    """A tied table, a convolution, a transposed use, a stack indexed by hand."""

    @nn.compact
    def __call__(self, ids, image):
        table = nn.Embed(32, 32, name="table")
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (32, 32))
        stack = self.param("stack", nn.initializers.lecun_normal(), (3, 32, 32))
        x = table(ids) @ kernel.T
        for layer in stack:
            x = jnp.tanh(x @ layer)
        y = nn.Conv(32, (3, 3), name="conv")(image).mean((1, 2))
        return table.attend(x + y[:, None])


@pytest.mark.parametrize("rule", [".*/(embedding|kernel)|kernel|stack", "stack"])
def test_other_uses(rule):
    ids = jnp.arange(6).reshape(2, 3)
    image = jax.random.normal(jax.random.key(1), (2, 4, 4, 32))
    variables = Odd().init(jax.random.key(0), ids, image)
    coded = pj.quantise(variables, {".*/(embedding|kernel)|kernel|stack": NF4})
    plain = pj.dequantise(coded)
    rules = {rule: pj.LoRA(2, alpha=6.0)}
    found, right = (
        pj.adapt(Odd().apply, v, ids, image, rules=rules) for v in (coded, plain)
    )
    adapters = perturb(found, found.init(jax.random.key(1)), 0.02)
    same(
        gradient(found, coded, adapters, ids, image),
        gradient(right, plain, adapters, ids, image),
    )


@pytest.mark.parametrize("scan", [False, True])
def test_the_backward_pass_keeps_the_codes(scan):
    """One layer's kernels at most stand decoded, forwards and backwards."""
    layers, width = 8, 256

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            def layer(module, x, _):
                return x + jnp.tanh(nn.Dense(width, name="fc")(x)), None

            if scan:
                run = nn.scan(
                    layer,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=layers,
                )
                return run(self, x, None)[0]
            for i in range(layers):
                x = x + jnp.tanh(nn.Dense(width, name=f"fc_{i}")(x))
            return x

    x = jax.ShapeDtypeStruct((2, width), jnp.float32)
    base = jax.eval_shape(Deep().init, jax.random.key(0), x)
    coded = pj.quantise(base, {".*kernel": pj.NF4(64, double=True)})
    kernel = width * width * 4

    def bytes_of(variables):
        rules = {".*kernel": pj.LoRA(2, alpha=6.0)}
        peft = pj.adapt(Deep().apply, variables, x, rules=rules)
        adapters = jax.eval_shape(peft.init, jax.random.key(0), variables)

        def loss(adapters, variables, x):
            return peft.apply(variables, adapters, x).sum()

        lowered = jax.jit(jax.grad(loss)).lower(adapters, variables, x)
        found = lowered.compile().memory_analysis()
        barriers = lowered.as_text().count("optimization_barrier")
        return found.argument_size_in_bytes, found.temp_size_in_bytes, barriers

    arguments, temporary, barriers = bytes_of(coded)
    whole, _, _ = bytes_of(base)
    assert whole - arguments > 0.85 * layers * kernel
    if scan:
        assert temporary < 2 * kernel, temporary / kernel
    else:  # XLA drops these on a CPU, and there alone
        assert barriers == layers


def test_a_coded_base_trains_split_over_devices():
    model, variables = vit()
    coded = pj.quantise(variables, {BLOCKS: NF4})
    batch = {"image": np.tile(X, (2, 1, 1, 1)), "label": np.arange(8) % 10}
    rules = {QKV: pj.LoRA(2, alpha=6.0)}

    def loss(apply, batch, key):
        return cross_entropy(apply(batch["image"]), batch["label"])

    def trained(base, mesh):
        peft = pj.adapt(model.apply, base, X, rules=rules)
        step = make_step(peft, optax.sgd(0.1), loss, mesh)
        state = create_state(peft, optax.sgd(0.1), jax.random.key(1), mesh)
        held = step.shard_base(base)
        for _ in range(2):
            state, metrics = step(state, held, batch)
        return state.trainable, metrics["loss"]

    one = make_mesh(data=1)
    right = trained(pj.dequantise(coded), one)
    same(trained(coded, one), right)
    if jax.device_count() >= 4:
        same(trained(coded, make_mesh(data=2, fsdp=2)), right, 1e-4)


def test_coded_leaves_are_refused_where_they_cannot_be():
    _, variables = vit()
    coded = pj.quantise(variables, {BLOCKS: NF4})
    with pytest.raises(ValueError, match="in codes already"):
        pj.quantise(coded, {BLOCKS: NF4})
