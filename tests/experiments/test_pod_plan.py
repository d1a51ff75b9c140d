"""Plans for slices of TPU pods: collectives in a program's text, FLOPs, a slice."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from configs import pods
from experiments.benchmarks import pod_plan
from experiments.benchmarks.chips import CHIPS
from experiments.benchmarks.pod_table import table
from experiments.benchmarks.program_text import collectives
from peftjax.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# of llama_narrow
WIDTH, INNER, VOCABULARY, LAYERS = 512, 1408, 2048, 2
KERNELS = {(1, WIDTH, WIDTH): 4, (1, WIDTH, INNER): 2, (1, INNER, WIDTH): 1}
TABLES = {(WIDTH, VOCABULARY): 2, (VOCABULARY, WIDTH): 1}

TEXT = """
%condition.1 (p.1: (s32[], bf16[8,16])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%async_collective_fusion.7 (p.2: bf16[8,2]) -> (f32[4], bf16[8,16]) {
  %all-gather.2 = bf16[8,16]{1,0} all-gather(%p.2), channel_id=5, dimensions={1}
}

%async_collective_fusion.8 (p.3: bf16[8,2]) -> (f32[4], bf16[8,16]) {
  %all-gather.3 = bf16[8,16]{1,0} all-gather(%p.3), channel_id=5, dimensions={1}
}

%body.1 (p.4: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %fusion.7 = f32[4]{0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.7
  %fusion.8 = f32[4]{0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.8
  %all-reduce.1 = (f32[4,2]{1,0}, /*index=1*/f32[8]{0}) all-reduce(%a, %b), channel_id=6
}

ENTRY %main (p.0: bf16[8,2]) -> bf16[8,16] {
  %while.1 = (s32[], bf16[8,16]) while(%t), condition=%condition.1, body=%body.1
  ROOT %all-gather.4 = bf16[8,16]{1,0} all-gather(%p.0), channel_id=9, dimensions={1}
}
"""


def test_collectives_count_as_often_as_their_loops_run():
    found = {(one.kind, one.asynchronous): (one, n) for one, n in counted(TEXT)}
    gather, times = found["all-gather", True]
    # one gather, spelt out in both computations beside which it runs
    assert (gather.shape, gather.bytes, times) == ((8, 16), 256, 3)
    assert found["all-gather", False][1] == 1
    reduce, times = found["all-reduce", False]
    assert (reduce.bytes, times) == (64, 3)


def counted(text):
    return collectives(text).items()


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="does not say"):
        collectives(TEXT.replace("constant(3)", "parameter(0)"))


def test_products_of_loops_recomputation_and_convolutions():
    def function(x, image, kernel):
        step = jax.checkpoint(lambda c, _: (c @ c, None))
        y = jax.lax.scan(step, x, length=3)[0]
        z = jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID")
        return y.sum() + z.sum()

    shapes = (4, 4), (1, 3, 8, 8), (5, 3, 2, 2)
    jaxpr = jax.make_jaxpr(function)(*map(jnp.ones, shapes))
    convolution = 2 * (5 * 7 * 7) * (3 * 2 * 2)
    assert pod_plan.products(jaxpr) == 3 * 2 * 4**3 + convolution
    assert pod_plan.products(jaxpr, loops=False) == 2 * 4**3 + convolution


@pytest.fixture(scope="module")
def case():
    return pods.config(model="llama_narrow", method="lora", batch=2, tokens=64)


def check(found):
    """Check that weights alone are gathered, each for both passes, and no more."""
    for one in found["collectives"]:
        shape, times = tuple(one["shape"]), one["times"]
        assert one["kind"] in ("all-gather", "all-reduce"), one
        if one["kind"] == "all-reduce":
            assert one["bytes"] <= 8 * WIDTH * 8 * 4, one  # the adapters of a layer
        else:
            assert shape in KERNELS or shape in TABLES, one
            assert times <= 2 * LAYERS * KERNELS.get(shape, 1), one


def test_a_plan_on_eight_devices(case):
    found = pod_plan.plan(case, make_mesh(1, 8), CHIPS["v5e"])
    check(found)
    leaves = jax.tree.leaves(pod_plan.abstract_base(case))
    small = sum(2 * leaf.size for leaf in leaves if leaf.size < 2**14)
    whole = sum(2 * leaf.size for leaf in leaves)
    assert found["base_bytes"] == (whole - small) / 8 + small
    assert found["base_bytes"] < found["argument_bytes"] < whole / 4
    # forward, recomputation and input gradient of every product, and of the head once
    kernels = LAYERS * sum(n * shape[1] * shape[2] for shape, n in KERNELS.items())
    least = 2 * 2 * 64 * (3 * kernels + 2 * WIDTH * VOCABULARY)
    assert 0.9 * least < found["flops"] < 1.3 * least
    assert found["seconds_at_least"] == max(found["seconds"].values())


def test_a_traced_step_has_the_flops_and_bytes_of_the_compiled_one(case):
    mesh = make_mesh(1, 8)
    found = pod_plan.traced(case, mesh, CHIPS["v5e"])
    compiled = pod_plan.plan(case, mesh, CHIPS["v5e"])
    assert found["flops"] == compiled["flops"]
    assert found["base_bytes"] == compiled["base_bytes"]
    assert 0.9 < found["argument_bytes"] / compiled["argument_bytes"] < 1.1
    # Each kernel once forward and once back; the compiler saves some of the tables.
    kernels = sum(2 * n * a * b for (_, a, b), n in KERNELS.items())
    assert found["received_bytes"] > 2 * LAYERS * kernels
    choices = {"choices": "model=llama_narrow", "topology": "v5e:2x4"}
    text = table([{**choices, "mesh": dict(mesh.shape), "gather": True, **found}])
    assert "not compiled" in text


def test_the_unet_of_stable_diffusion_is_a_case():
    case = pods.config(model="sd15", method="hra", batch=2)
    assert case.batch["latents"].shape == (2, 64, 64, 4)
    assert [x.shape[0] for x in case.example] == [1, 1, 1]
    assert case.rules[0][1].rank == 8


def test_the_compiler_alone_fails_the_check(case):
    found = pod_plan.plan(case, make_mesh(1, 8), CHIPS["v5e"], gather=False)
    with pytest.raises(AssertionError):
        check(found)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no libtpu: jax[tpu]"
)
def test_a_slice_of_a_pod(tmp_path):
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "experiments.benchmarks.pod_plan"]
    command += ["--config", "configs/pods.py:model=llama_narrow,tokens=512"]
    command += ["--topology", "v5e:4x4", "--fsdp", "16", "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    (found,) = json.loads(out.read_text())
    check(found)
    assert found["fits"] and found["mesh"] == {"data": 1, "fsdp": 16}
    assert found["received_while_computing"] > 0.5
