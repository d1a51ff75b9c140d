"""Eight devices against one, pmap against jit, bytes per device, collectives."""

import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import peftjax as pj
from peftjax.data.pipeline import eval_batches, train_batches
from peftjax.parallel.distributed import initialize
from peftjax.parallel.mesh import make_mesh
from peftjax.parallel.sharding import (
    bytes_per_device,
    join,
    own_rows,
    place_batch,
    shard,
    split,
    split_axis,
)
from peftjax.training.checkpoint import Checkpoints
from peftjax.training.evaluation import evaluate, make_eval
from peftjax.training.loop import Preempted, train
from peftjax.training.metrics import read_metrics
from peftjax.training.optimizer import make_optimizer
from peftjax.training.state import create_state
from peftjax.training.step import make_step
from tests.helpers.training_case import (
    CLASSES,
    DEPTH,
    FEATURES,
    HIDDEN,
    TOKENS,
    Block,
    arrays,
    case,
    loss,
    losses,
    outputs,
    start,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one():
    """Losses and adapters of four steps on one device."""
    values, state = losses(make_mesh(1, 1, jax.devices()[:1]))
    return values, jax.device_get(state.trainable)


@pytest.mark.parametrize(
    ("shape", "parallel"),
    [((8, 1), "jit"), ((1, 8), "jit"), ((2, 4), "jit"), ((2, 4), "pmap")],
)
def test_eight_devices_equal_one(one, shape, parallel):
    values, state = losses(make_mesh(*shape), parallel=parallel)
    np.testing.assert_allclose(values, one[0], atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        state.trainable,
        one[1],
    )


def wide_loss(apply, batch, key):
    logits = apply(batch["x"], train=True, rngs={"dropout": key})
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def wide_adapters(mesh, steps=30):
    """Return what training in float64 ends with."""
    step, state, variables = start(mesh, loss=wide_loss)

    def wide(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float64) if floating else leaf

    with jax.enable_x64(True):
        state, variables = jax.tree.map(wide, (state, variables))
        data = train_batches(arrays(), 16, seed=7)
        for batch in (next(data) for _ in range(steps)):
            batch = batch | {"x": batch["x"].astype(np.float64)}
            state, _ = step(state, variables, batch)
        return jax.device_get(state.trainable)


def test_only_rounding_depends_on_the_mesh():
    """In float64 nothing is left of what float32 makes of it: 1e-7 a step, growing."""
    alone = wide_adapters(make_mesh(1, 1, jax.devices()[:1]))
    found = wide_adapters(make_mesh(2, 4))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float64")}
    same = partial(np.testing.assert_allclose, rtol=0, atol=1e-11)
    jax.tree.map(same, found, alone)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_accumulation_on_eight_devices_equals_one(one, parallel):
    values, _ = losses(make_mesh(2, 4), parallel=parallel, accumulate=2)
    np.testing.assert_allclose(values, one[0], atol=1e-5)


def test_dropout_under_jit_does_not_depend_on_the_mesh():
    found = [
        losses(mesh, steps=2, rate=0.5)[0]
        for mesh in (make_mesh(1, 1, jax.devices()[:1]), make_mesh(2, 4))
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_each_device_holds_an_eighth_of_the_base(parallel):
    _, state, variables = start(make_mesh(1, 8), parallel=parallel)
    leaves = jax.tree.leaves(case()[1])
    small = sum(leaf.nbytes for leaf in leaves if leaf.size < 256)
    expected = (sum(leaf.nbytes for leaf in leaves) - small) / 8 + small
    assert set(bytes_per_device(variables).values()) == {expected}
    assert len(bytes_per_device(variables)) == 8
    per_device = set(bytes_per_device(state.trainable).values())
    assert per_device == {sum(x.nbytes for x in jax.tree.leaves(state.trainable))}


def collectives(text):
    """Return `[(operation, [shape, ...])]` of a compiled program's text."""
    pattern = r"= (\(.*?\)|\S+) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\("
    return [
        (name, [ints(shape) for shape in re.findall(r"\[([\d,]*)\]", shapes)])
        for shapes, name in re.findall(pattern, text)
    ]


def ints(text):
    return tuple(int(size) for size in text.split(",") if size)


@pytest.mark.parametrize(
    ("parallel", "accumulate"), [("jit", 1), ("jit", 2), ("pmap", 2)]
)
def test_collectives_are_weights_gathered_and_gradients_reduced(parallel, accumulate):
    settings = {"parallel": parallel, "accumulate": accumulate}
    step, state, variables = start(make_mesh(1, 8), **settings)
    # As in training at size, activations outweigh a weight; the smaller one is moved.
    batch = {name: array[:64] for name, array in arrays().items()}
    found = collectives(step.lower(state, variables, batch).compile().as_text())
    assert {name for name, _ in found} == {"all-gather", "all-reduce"}
    gathered = [s for name, shapes in found if name == "all-gather" for s in shapes]
    weights = [(FEATURES, HIDDEN), (HIDDEN, FEATURES)] * DEPTH
    allowed = [sorted(weights)]
    if parallel == "jit":
        # again for the backward pass, which ends before the first layer's input
        again = sorted([*weights, *weights[1:]])
        # the newest XLA makes one gather of both in the loop over micro-batches
        allowed = [again] if accumulate == 1 else [again, *allowed]
    assert sorted(gathered) in allowed
    reduced = [shapes for name, shapes in found if name == "all-reduce"]
    assert len(reduced) == 1
    gradients = [x.shape for x in jax.tree.leaves(state.trainable)]
    scalars = [shape for shape in reduced[0] if shape == ()]
    assert 1 <= len(scalars) <= 2
    assert len(reduced[0]) == len(gradients) + len(scalars)
    sizes = sum(int(np.prod(shape)) for shape in reduced[0])
    assert sizes == len(scalars) + sum(int(np.prod(shape)) for shape in gradients)


def test_the_optimizer_is_never_split_even_where_activations_are_moved():
    step, state, variables = start(make_mesh(1, 8))
    batch = {name: array[:8] for name, array in arrays().items()}
    found = collectives(step.lower(state, variables, batch).compile().as_text())
    gradients = {x.shape for x in jax.tree.leaves(state.trainable)}
    gradients |= {shape[::-1] for shape in gradients}
    gathered = [s for name, shapes in found if name == "all-gather" for s in shapes]
    assert len([s for s in gathered if s in gradients]) <= 8


def test_scanned_layers_are_gathered_one_at_a_time():
    depth = 3

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            block = nn.scan(
                lambda block, x, _: (block(x, train), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=depth,
            )
            return nn.Dense(CLASSES)(block(Block(name="blocks"), x, None)[0].mean(1))

    model, x = Scanned(), jnp.zeros((8, TOKENS, FEATURES))
    variables = model.init(jax.random.key(0), x)
    rules = {r"blocks/fc\d/kernel": pj.LoRA(rank=3, alpha=5.0)}
    peft = pj.adapt(model.apply, variables, x, rules=rules, strict=True)
    mesh, optimizer = make_mesh(1, 8), make_optimizer("sgd", 0.1)
    step = make_step(peft, optimizer, loss, mesh)
    state = create_state(peft, optimizer, jax.random.key(0), mesh)
    base = step.shard_base(variables, threshold=256)
    batch = {name: array[:64] for name, array in arrays().items()}
    found = collectives(step.lower(state, base, batch).compile().as_text())
    gathered = [s for name, shapes in found if name == "all-gather" for s in shapes]
    assert gathered
    assert max(int(np.prod(shape)) for shape in gathered) == FEATURES * HIDDEN


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_the_step_is_compiled_once(parallel):
    traces = []

    def counted(apply, batch, key):
        traces.append(1)
        return loss(apply, batch, key)

    losses(make_mesh(2, 4), steps=3, loss=counted, parallel=parallel)
    assert len(traces) == 1


def tree():
    rng = np.random.default_rng(0)
    shapes = {"a": (16, 24), "b": (3, 40, 5), "c": (7, 9), "d": (8,), "e": ()}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_every_layout_holds_the_same_values():
    mesh = make_mesh(2, 4)
    for place in (shard, split):
        placed = place(tree(), mesh, threshold=10)
        back = jax.jit(join)(placed)
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, np.float32(b)), back, tree()
        )
    specs = {n: tuple(x.sharding.spec) for n, x in shard(tree(), mesh, 10).items()}
    assert specs["a"] == (None, "fsdp")
    assert specs["b"] == (None, "fsdp")
    assert specs["c"] == specs["d"] == specs["e"] == ()


def test_evaluation_takes_either_layout():
    peft, variables = case()
    adapters = peft.init(jax.random.key(0))
    examples = {name: array[:21] for name, array in arrays().items()}
    expected = peft.apply(variables, adapters, examples["x"])
    mesh = make_mesh(2, 4)
    for place in (shard, split):
        eval_step = make_eval(peft, outputs, mesh)
        base = place(variables, mesh, threshold=256)
        found = evaluate(eval_step, base, adapters, eval_batches(examples, 8))
        np.testing.assert_allclose(found["logits"], expected, atol=1e-5)


def test_the_batch_is_split_over_both_axes():
    placed = place_batch({"x": np.arange(16)}, make_mesh(2, 4))["x"]
    assert {part.data.shape for part in placed.addressable_shards} == {(2,)}
    assert len({part.index[0].start for part in placed.addressable_shards}) == 8
    with pytest.raises(ValueError, match=r"batch\['x'\] has shape \(12,\).* that 8 "):
        place_batch({"x": np.arange(12)}, make_mesh(2, 4))


def test_a_leaf_is_split_along_its_largest_divisible_axis():
    assert split_axis((30, 16, 8), 8, 0) == 1
    assert split_axis((30, 15), 8, 0) is None
    assert split_axis((16, 16), 8, 257) is None
    assert split_axis((16, 16), 1, 0) is None


@pytest.mark.parametrize("shape", [(3, 3), (None, 3), (0, 1), (1, 0), (None, 16)])
def test_meshes_that_do_not_fit_the_devices(shape):
    with pytest.raises(ValueError, match="8 devices are there"):
        make_mesh(*shape)


def test_the_default_mesh_takes_all_devices():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}


def process(number, port, workdir, stop=""):
    """Run one of two processes of four devices each; `stop` is asked on the second."""
    initialize(f"localhost:{port}", 2, int(number))
    mesh = make_mesh(1, 8)
    step, state, variables = start(mesh)
    data = train_batches(arrays(), 16, seed=7, part=own_rows(mesh, 16))
    settings = {"steps": 4, "log_every": 1, "workdir": workdir, "save_every": 2}
    asked = []

    def stops():
        asked.append(1)
        return number == stop and len(asked) == 3

    settings |= {"stop": stops, "resume": True} if stop else {}
    try:
        train(step, state, variables, data, **settings)
    except Preempted as error:
        raise SystemExit(10 + error.step) from error
    assert len(bytes_per_device(variables)) == 4


def run_two(workdir, *arguments):
    """Return the exit codes of two processes, and what they wrote to stderr."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = (
        "import sys; from tests.parallel.test_mesh import process as run; "
        "run(*sys.argv[1:])"
    )
    flags = "--xla_force_host_platform_device_count=4"
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, number, str(port), str(workdir), *arguments],
            env=environment | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in ("0", "1")
    ]
    errors = [run.communicate(timeout=400)[1] for run in runs]
    return [run.returncode for run in runs], "".join(errors)


def test_two_processes_equal_one(one, tmp_path):
    codes, errors = run_two(tmp_path)
    assert codes == [0, 0], errors
    found = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(found, one[0], atol=1e-5)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4]


def test_two_processes_stop_together_where_one_is_asked_to(one, tmp_path):
    codes, errors = run_two(tmp_path, "1")
    assert codes == [13, 13], errors
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 3]
    codes, errors = run_two(tmp_path, "neither")
    assert codes == [0, 0], errors
    found = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    np.testing.assert_allclose(found, one[0], atol=1e-5)
