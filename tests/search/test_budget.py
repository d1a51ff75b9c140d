"""AdaLoRA's budget against 60 updates of the torch library."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.data.pipeline import train_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.search import allocate
from peftjax.search.budget import schedule
from peftjax.training.loop import train
from peftjax.training.state import create_state
from peftjax.training.step import make_step
from tests.helpers.goldens import load

pytestmark = pytest.mark.slow

LAYERS = ("first", "second", "last")
STEPS = 60


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width, name in zip((16, 16, 7), LAYERS):
            x = nn.Dense(width, name=name)(x)
            x = x if name == "last" else jnp.tanh(x)
        return x


def loss(apply, batch, key):
    return ((apply(batch["x"]) - batch["wanted"]) ** 2).mean(-1)


@pytest.fixture(scope="module")
def golden():
    return load("adalora_peft")


def method_of(golden, **changes):
    there = json.loads(str(golden["settings"]))
    settings = {
        "rank": there["init_r"],
        "alpha": there["lora_alpha"],
        "target_rank": there["target_r"],
        "total_steps": there["total_step"],
        "warmup": there["tinit"],
        "final": there["tfinal"],
        "every": there["deltaT"],
        "penalty_weight": there["orth_reg_weight"] / 6,
        "beta1": there["beta1"],
        "beta2": there["beta2"],
    }
    return pj.AdaLoRA(**{**settings, **changes})


def planned(golden, **changes):
    """Return plan, variables and the reference's first adapters."""
    params = {
        name: {
            "kernel": golden[f"base.{name}.weight"].T,
            "bias": golden[f"base.{name}.bias"],
        }
        for name in LAYERS
    }
    variables, method = {"params": params}, method_of(golden, **changes)
    x = jnp.zeros((8, 12))
    peft = pj.adapt(Net().apply, variables, x, rules={".*/kernel": method})
    adapters = peft.init(jax.random.key(0))
    for name in LAYERS:
        a, b, e = (golden[f"start.{name}.{kind}"] for kind in "abe")
        own = {"a": a.T, "b": b.T, "e": e[:, 0]}
        adapters[f"{name}/kernel"] |= {k: jnp.asarray(v) for k, v in own.items()}
    return peft, variables, adapters


def stepping(golden, mesh=None, update_frozen=allocate, **settings):
    mesh = mesh or make_mesh(1, 1, jax.devices()[:1])
    peft, variables, adapters = planned(golden)
    optimizer = optax.adam(float(golden["rate"]))
    moved = update_frozen(peft)
    step = make_step(peft, optimizer, loss, mesh, update_frozen=moved, **settings)
    key = jax.random.key(1)
    state = create_state(peft, optimizer, key, mesh, adapters=adapters)
    return peft, step, state, step.shard_base(variables, threshold=64)


def left(state):
    """Return which triplets are left, `[layers, r]`."""
    p = [(state.trainable[f"{n}/kernel"], state.frozen[f"{n}/kernel"]) for n in LAYERS]
    return np.stack([np.asarray(own["e"] - f["pruned"]) != 0 for own, f in p])


def batches(golden):
    for x, wanted in zip(golden["x"], golden["wanted"]):
        yield {"x": x, "wanted": wanted}


def test_sixty_updates_are_the_torch_library_s(golden):
    traces = []

    def counted(peft):
        move = allocate(peft)

        def update_frozen(*args):
            traces.append(1)
            return move(*args)

        return update_frozen

    peft, step, state, base = stepping(golden, update_frozen=counted)
    for number, batch in enumerate(batches(golden)):
        state, metrics = step(state, base, batch)
        found = float(metrics["loss"] + metrics["penalty"])
        assert found == pytest.approx(golden["losses"][number], rel=2e-5), number
        np.testing.assert_array_equal(left(state), golden["left"][number])
    assert len(traces) == 1
    ranks = [int(p["mask"].sum()) for p in state.frozen.values()]
    assert sorted(ranks) == sorted(golden["left"][-1].sum(-1)) != [2, 2, 2]
    adapters = peft.combine(state.trainable, state.frozen)
    x = golden["x"][0]
    y = peft.apply(base, adapters, x)
    np.testing.assert_allclose(y, golden["y"], atol=2e-5)
    merged = peft.merge(base, adapters)["params"]
    for name in LAYERS:
        theirs = golden[f"merged.{name}"].T
        np.testing.assert_allclose(merged[name]["kernel"], theirs, atol=2e-5)


@pytest.mark.parametrize("settings", [{"parallel": "pmap"}, {"accumulate": 2}])
def test_ranks_do_not_depend_on_mesh_or_accumulation(golden, settings):
    mesh = make_mesh(2, 2, jax.devices()[:4]) if "parallel" in settings else None
    _, step, state, base = stepping(golden, mesh, **settings)
    for number, batch in enumerate([*batches(golden)][:30]):
        state, _ = step(state, base, batch)
        np.testing.assert_array_equal(left(state), golden["left"][number])


def test_resuming_is_exact(golden, tmp_path):
    data = {name: golden[name].reshape(480, -1) for name in ("x", "wanted")}

    def run(workdir, steps, **settings):
        _, step, state, base = stepping(golden)
        stream = train_batches(data, 8, seed=3)
        where = {"steps": steps, "workdir": workdir}
        return train(step, state, base, stream, **where, **settings)

    whole = run(tmp_path / "whole", 25)
    run(tmp_path / "parts", 14)
    again = run(tmp_path / "parts", 25, resume=True)
    one, other = (
        [np.asarray(x).tobytes() for x in jax.tree.leaves(s._replace(key=()))]
        for s in (whole, again)
    )
    assert one == other and (left(whole) == 0).any()


def test_layers_of_a_scan_share_the_budget():
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda block, x, _: (jnp.tanh(block(x)), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scan(nn.Dense(6, name="block"), x, None)[0]

    x = jnp.ones((2, 6))
    variables = Scanned().init(jax.random.key(0), x)
    method = pj.AdaLoRA(4, alpha=3.0, target_rank=1, total_steps=3)
    peft = pj.adapt(Scanned().apply, variables, x, rules={"block/kernel": method})
    assert schedule(peft).tolist() == [12, 5, 3, 3]
    trainable, frozen = peft.partition(peft.init(jax.random.key(0)))
    grads = jax.tree.map(
        lambda v: jax.random.normal(jax.random.key(2), v.shape), trainable
    )
    trainable["block/kernel"]["e"] = jax.random.normal(jax.random.key(3), (3, 4))
    move = jax.jit(allocate(peft))
    for step in range(3):
        frozen = move(frozen, trainable, grads, step, jax.random.key(0))
    mask = np.asarray(frozen["block/kernel"]["mask"])
    assert mask.shape == (3, 4) and mask.sum() == 3


def test_what_is_refused(golden):
    with pytest.raises(
        ValueError, match=r"AdaLoRA is trained while mask and pruned mo"
    ):
        stepping(golden, update_frozen=lambda peft: None)
    with pytest.raises(ValueError, match=r"total_steps=None\): expected the number"):
        allocate(planned(golden, total_steps=None)[0])
    model, x = Net(), jnp.zeros((1, 12))
    variables = model.init(jax.random.key(0), x)

    def plan(rules):
        return pj.adapt(model.apply, variables, x, rules=rules)

    with pytest.raises(ValueError, match="rules without AdaLoRA.*LoRA"):
        allocate(plan({"first/kernel": pj.LoRA(2, alpha=1.0)}))
    one, other = method_of(golden), method_of(golden, every=2)
    with pytest.raises(ValueError, match="second/kernel: .*share one budget"):
        allocate(plan({"first/kernel": one, "second/kernel": other}))
