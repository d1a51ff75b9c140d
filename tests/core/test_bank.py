"""A bank of adapters: each row of a batch runs with its own adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.testing import error, linen_case, perturb

pytestmark = pytest.mark.slow

METHODS = {
    "lora": pj.LoRA(rank=4, alpha=7.0),
    "hydra": pj.Hydra(rank=2, branch_bias=True),
    "hydralora": pj.HydraLoRA(rank=2, heads=3, alpha=5.0),
    "hra": pj.HRA(rank=4),
    "dora": pj.DoRA(rank=4, alpha=7.0),
}


def case_with(method, pattern=r"(scanned/fc\d|remat/fc1|attention/\w+|conv)/kernel"):
    case = linen_case(method)
    rules = {pattern: method, "head/.*": pj.Full()}
    peft = pj.adapt(case.apply_fn, case.variables, *case.inputs, rules=rules)
    make = jax.jit(lambda key, scale: perturb(peft, peft.init(key), scale))
    adapters = [make(jax.random.key(i), 0.1 * (i + 1)) for i in range(3)]
    ids = jax.random.randint(jax.random.key(3), (5, 4), 0, 32)
    images = jax.random.normal(jax.random.key(4), (5, 6, 6, 8))
    return case, peft, adapters, (ids, images)


@pytest.mark.parametrize("name", METHODS)
def test_row_i_equals_the_single_run_of_row_i(name):
    case, peft, adapters, inputs = case_with(METHODS[name])
    ids = np.array([2, -1, 0, 1, 2])
    count = 0

    @jax.jit
    def run(bank, ids, *inputs):
        nonlocal count
        count += 1
        return peft.apply(case.variables, bank, *inputs, adapter_ids=ids)

    bank = pj.bank(adapters)
    found = run(bank, ids, *inputs)
    single = jax.jit(peft.apply)
    for row, which in enumerate(ids):
        one = [value[row : row + 1] for value in inputs]
        expected = (
            case.apply_fn(case.variables, *one)
            if which < 0
            else single(case.variables, adapters[which], *one)
        )
        assert error(found[row], expected[0]) < 1e-5, (row, which)
    run(pj.bank(adapters[::-1]), ids[::-1].copy(), *inputs)
    assert count == 1


@pytest.mark.parametrize(
    ("method", "lower"),  # of one scale, for the plan's own holds for both
    [(pj.LoRA(4, 7.0), pj.LoRA(2, 3.5)), (pj.HRA(rank=4), pj.HRA(rank=2))],
)
def test_lower_ranks_are_padded(method, lower):
    pattern = "remat/fc1/kernel"
    case, peft, adapters, inputs = case_with(method, pattern)
    _, small_peft, (small, *_), _ = case_with(lower, pattern)
    bank = pj.bank([adapters[0], small])
    found = peft.apply(case.variables, bank, *inputs, adapter_ids=jnp.ones(5, int))
    expected = small_peft.apply(case.variables, small, *inputs)
    assert error(found, expected) < 1e-5
    with pytest.raises(ValueError, match="fc1/kernel: expected the arrays of"):
        peft.apply(case.variables, small, *inputs)


def test_a_bank_costs_little_more_than_one_adapter():
    """FLOPs of 8 and of 64 adapters in one batch of 16 rows, over those of one."""
    kernel = {"kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
    x = jax.ShapeDtypeStruct((16, 64, 256), jnp.float32)
    apply_fn = lambda v, x: x @ v["kernel"]  # noqa: E731
    peft = pj.adapt(apply_fn, kernel, x, rules={"kernel": pj.LoRA(8, 16.0)})
    one = jax.eval_shape(peft.init, jax.random.key(0))
    ids = jax.ShapeDtypeStruct((16,), jnp.int32)

    def flops(run, *arguments):
        return jax.jit(run).lower(*arguments).compile().cost_analysis()["flops"]

    def with_ids(v, bank, x, ids):
        return peft.apply(v, bank, x, adapter_ids=ids)

    single = flops(peft.apply, kernel, one, x)
    for size in (8, 64):
        bank = jax.eval_shape(pj.bank, [one] * size)
        assert flops(with_ids, kernel, bank, x, ids) < 1.1 * single


def test_rows_sharded_over_devices():
    case, peft, adapters, inputs = case_with(pj.LoRA(4, 7.0), r"scanned/fc\d/kernel")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    inputs = [jnp.concatenate([v, v])[:8] for v in inputs]
    ids = jnp.array([0, 1, 2, -1, -1, 2, 1, 0])
    bank = pj.bank(adapters)
    run = jax.jit(lambda b, ids, *x: peft.apply(case.variables, b, *x, adapter_ids=ids))
    placed = jax.device_put((ids, *inputs), rows)
    found = run(bank, *placed)
    assert error(found, run(bank, ids, *inputs)) < 1e-5
    assert found.sharding.is_equivalent_to(rows, found.ndim)


def test_glora_warns_of_its_cost():
    case, peft, adapters, inputs = case_with(pj.GLoRA(2), "remat/fc1/kernel")
    with pytest.warns(UserWarning, match="one kernel for each row at remat/fc1/kernel"):
        peft.apply(
            case.variables, pj.bank(adapters), *inputs, adapter_ids=jnp.zeros(5, int)
        )


def test_bad_banks_and_ids():
    one = {"fc/kernel": {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 4))}}
    with pytest.raises(ValueError, match="at least one adapter"):
        pj.bank([])
    with pytest.raises(ValueError, match="adapter 1 is of another plan.*fc2/kernel:a"):
        pj.bank([one, {"fc2/kernel": one["fc/kernel"]}])
    with pytest.raises(ValueError, match=r"fc/kernel:a has shapes .*the rank alone"):
        pj.bank([one, {"fc/kernel": {"a": jnp.ones((4, 1)), "b": jnp.ones((1, 4))}}])
    for strange in (one, "ab", ["a"], [None], [jnp.ones(3)], [{"a": {"x": 1.0}}]):
        with pytest.raises(TypeError, match=r"bank: expected"):
            pj.bank(strange)  # pyright: ignore
    v, x = {"kernel": jnp.ones((3, 4))}, jnp.ones((2, 3))
    peft = pj.adapt(
        lambda v, x: x @ v["kernel"], v, x, rules={"kernel": pj.LoRA(2, 3.0)}
    )
    bank = pj.bank([peft.init(jax.random.key(0))] * 2)
    for ids, message in (
        ([0, 2], r"adapter_ids\[1\] = 2: expected -1 \(the base\) to 1"),
        ([-2, 0], r"adapter_ids\[0\] = -2"),
        ([0, 1, 1], "adapter_ids holds 3 ids"),
        ([0.5, 1.0], "expected integers"),
    ):
        with pytest.raises(ValueError, match=message):
            peft.apply(v, bank, x, adapter_ids=jnp.array(ids))
    with pytest.raises(ValueError, match="adapter_ids takes adapters stacked by bank"):
        one = peft.init(jax.random.key(0))
        peft.apply(v, one, x, adapter_ids=jnp.zeros(2, int))
    # inside jit ids are unknown: NaN, never the last adapter
    run = jax.jit(lambda ids: peft.apply(v, bank, x, adapter_ids=ids))
    assert np.isnan(run(jnp.array([0, 2]))).any(-1).tolist() == [False, True]
