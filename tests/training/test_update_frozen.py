"""The hook that moves frozen leaves inside the compiled update."""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.core.method import Method
from peftjax.data.pipeline import train_batches
from peftjax.parallel.mesh import make_mesh
from peftjax.search import draw
from peftjax.training.loop import train
from peftjax.training.optimizer import make_optimizer
from peftjax.training.state import create_state
from peftjax.training.step import make_step
from tests.helpers.training_case import Block, Net, arrays, loss

pytestmark = pytest.mark.slow

OPTIMIZER = make_optimizer("sgd", 0.1, clip=1e-3)
SUPERNET = {r"blocks.*/fc1/kernel": pj.GLoRASupernet(rank=2), "head/.*": pj.Full()}


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        block = nn.scan(
            lambda block, x, _: (block(x, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(5, name="head")(block(Block(name="blocks"), x, None)[0].mean(1))


def planned(model=None, rules=SUPERNET):
    model = model or Net()
    x = jnp.zeros((8, *arrays()["x"].shape[1:]))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    return pj.adapt(model.apply, variables, x, rules=rules), variables


def start(mesh=None, model=None, rules=SUPERNET, update_frozen=draw, **settings):
    mesh = mesh or make_mesh(1, 1, jax.devices()[:1])
    peft, variables = planned(model, rules)
    step = make_step(
        peft, OPTIMIZER, loss, mesh, update_frozen=update_frozen(peft), **settings
    )
    state = create_state(peft, OPTIMIZER, jax.random.key(3), mesh)
    return step, state, step.shard_base(variables, threshold=256)


def structures(state):
    return [
        np.asarray(p["structure"]).tolist() for _, p in sorted(state.frozen.items())
    ]


def batch(size=16):
    return {name: array[:size] for name, array in arrays().items()}


def drawn(**settings):
    step, state, base = start(**settings)
    found = []
    for _ in range(3):
        state, _ = step(state, base, batch())
        found.append(structures(state))
    return found


@pytest.fixture(scope="module")
def alone():
    return drawn()


@pytest.mark.parametrize(
    "settings",
    [
        {"mesh": "all"},
        {"accumulate": 2},
        {"mesh": "all", "accumulate": 2},
        {"mesh": "all", "parallel": "pmap"},
    ],
)
def test_draws_do_not_depend_on_mesh_or_accumulation(settings, alone):
    mesh = make_mesh(2, 4) if settings.pop("mesh", None) else None
    assert drawn(mesh=mesh, **settings) == alone
    assert alone[0] != alone[1] != alone[2]


def test_layers_of_a_scan_draw_their_own():
    step, state, base = start(model=Scanned())
    state, _ = step(state, base, batch())
    structure = np.asarray(state.frozen["blocks/fc1/kernel"]["structure"])
    assert structure.shape == (3, 5)
    assert len({tuple(row) for row in structure}) > 1


def test_nothing_is_compiled_again_in_500_steps():
    traces = []

    def counted(peft):
        drawing = draw(peft)

        def update_frozen(*args):
            traces.append(1)
            return drawing(*args)

        return update_frozen

    rules = {"blocks_0/fc1/kernel": pj.GLoRASupernet(rank=3)}
    step, state, base = start(rules=rules, update_frozen=counted)
    seen = set()
    for _ in range(500):
        state, _ = step(state, base, batch())
        seen.add(str(structures(state)))
    assert len(traces) == 1
    assert len(seen) > 100


def test_resuming_is_exact(tmp_path):
    def run(workdir, steps, **settings):
        step, state, base = start(make_mesh(2, 4))
        data = train_batches(arrays(), 16, seed=3)
        where = {"steps": steps, "workdir": workdir}
        return train(step, state, base, data, **where, **settings)

    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "parts", 5)
    again = run(tmp_path / "parts", 9, resume=True)
    one, other = (
        [np.asarray(x).tobytes() for x in jax.tree.leaves(s._replace(key=()))]
        for s in (whole, again)
    )
    assert one == other


@dataclass(frozen=True)
class Watched(Method):
    """`y = x K + b + a`, with frozen leaves that a hook fills."""

    frozen: ClassVar[tuple[str, ...]] = ("after", "gradient", "number", "drawn")

    def init(self, key, layer):
        zeros = jnp.zeros(layer.d_out)
        number = jnp.int32(0)
        return {"a": zeros, "after": zeros, "gradient": zeros, "number": number} | {
            "drawn": jnp.zeros(())
        }

    def formula(self, p, x, kernel, bias, *, key=None):
        return x @ kernel + bias + p["a"]


def watching(peft):
    def watch(frozen, trainable, grads, step, key):
        return {
            path: {
                "after": p["a"],
                "gradient": grads[path]["a"],
                "number": step,
                "drawn": jax.random.uniform(key),
            }
            for path, p in trainable.items()
            if "a" in p
        }

    return watch


WATCHED = {"head/kernel": Watched()}


def test_it_sees_the_update_and_its_gradients():
    step, state, base = start(rules=WATCHED, update_frozen=watching)
    drawn = []
    for number in range(3):
        before = np.asarray(state.trainable["head/kernel"]["a"])
        state, metrics = step(state, base, batch())
        seen = {k: np.asarray(v) for k, v in state.frozen["head/kernel"].items()}
        after = np.asarray(state.trainable["head/kernel"]["a"])
        np.testing.assert_array_equal(seen["after"], after)
        assert seen["number"] == number
        norm = np.linalg.norm(seen["gradient"])
        assert norm == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
        clipped = 0.1 * 1e-3 * seen["gradient"] / norm
        np.testing.assert_allclose(before - after, clipped, atol=1e-7)
        drawn.append(float(seen["drawn"]))
    assert len(set(drawn)) == 3


def test_a_batch_that_does_not_count_moves_no_frozen_leaf():
    step, state, base = start(rules=WATCHED, update_frozen=watching)
    state, _ = step(state, base, batch() | {"mask": np.zeros(16)})
    assert not any(x.any() for x in jax.tree.leaves(jax.device_get(state.frozen)))


def test_leaves_of_another_shape_are_named():
    def wider(peft):
        return lambda frozen, *rest: jax.tree.map(lambda x: x[None], frozen)

    expected = (
        r"update_frozen returned another head/kernel/after: expected float32\[5\]"
    )
    step, state, base = start(rules=WATCHED, update_frozen=wider)
    with pytest.raises(ValueError, match=expected):
        step(state, base, batch())
    step, state, base = start(rules=WATCHED, update_frozen=lambda p: lambda *args: {})
    with pytest.raises(ValueError, match="another head/kernel/after.*found none"):
        step(state, base, batch())


def test_a_supernet_that_nothing_draws_is_an_error():
    with pytest.raises(ValueError, match=r"blocks_0/fc1/kernel: GLoRASu.*search.draw"):
        start(update_frozen=lambda peft: None)
