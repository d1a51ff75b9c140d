"""`to_lora`: any mergeable adapter as a LoRA, exactly where the rank suffices."""

import jax
import jax.numpy as jnp
import pytest

import peftjax as pj
from peftjax.testing import error, linen_case

pytestmark = pytest.mark.slow

METHODS = {
    "lora": pj.LoRA(rank=4, alpha=7.0),
    "hydra": pj.Hydra(rank=2, branch_bias=True),
    "hra": pj.HRA(rank=4),
    "dora": pj.DoRA(rank=4, alpha=7.0),
    "glora": pj.GLoRA(rank=2),
}
# rank of the delta, where it is less than the weight's
RANKS = {"lora": 4, "hydra": 4, "hra": 4}


@pytest.mark.parametrize("name", METHODS)
def test_full_rank_is_exact_and_half_is_near(name):
    case = linen_case(METHODS[name])
    peft, adapters = case.peft, case.perturbed
    expected = jax.jit(peft.apply)(case.variables, adapters, *case.inputs)

    def converted(rank):
        found = pj.to_lora(peft, adapters, rank=rank)
        other = pj.adapt(case.apply_fn, case.variables, *case.inputs, rules=found.rules)
        y = jax.jit(other.apply)(case.variables, found.adapters, *case.inputs)
        return found, error(y, expected)

    found, off = converted(RANKS.get(name, 16))
    assert off < 10 * case.bound and max(found.errors.values()) < 1e-5
    half, off_half = converted(2)
    assert off < off_half
    assert set(half.errors) == {site.path for site in peft.sites}
    assert all(found.errors[path] <= e < 1 for path, e in half.errors.items())


def test_energy_chooses_the_rank():
    v = {"kernel": jnp.zeros((6, 4))}
    x = jnp.ones((1, 6))
    peft = pj.adapt(
        lambda v, x: x @ v["kernel"], v, x, rules={"kernel": pj.LoRA(4, 4.0)}
    )
    b = jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.1]))
    adapters = {"kernel": {"a": jnp.eye(6)[:, :4], "b": b}}
    total = 9 + 4 + 1 + 0.01
    for energy, rank, lost in (
        (0.5, 1, 5.01),
        (0.9, 2, 1.01),
        (0.99, 3, 0.01),
        (1, 4, 0),
    ):
        found = pj.to_lora(peft, adapters, energy=energy)
        assert found.rules["kernel"] == pj.LoRA(rank, alpha=float(rank))
        assert found.errors["kernel"] == pytest.approx((lost / total) ** 0.5, abs=1e-6)


def test_gated_heads_need_gates():
    case = linen_case(pj.HydraLoRA(rank=2, heads=3, alpha=5.0))
    with pytest.raises(pj.NotMergeable, match="gates"):
        pj.to_lora(case.peft, case.perturbed, rank=2)
    found = pj.to_lora(case.peft, case.perturbed, rank=2, gates="uniform")
    assert max(found.errors.values()) < 1e-5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 17}, r"kernel: to_lora\(rank=17\).*1 <= rank <= 16"),
        ({"rank": 0}, "1 <= rank"),
        ({}, "one of rank and energy"),
        ({"rank": 1, "energy": 0.5}, "one of rank and energy"),
        ({"energy": 0.0}, "0 < energy <= 1"),
    ],
)
def test_bad_requests(options, message):
    case = linen_case(METHODS["lora"])
    with pytest.raises(ValueError, match=message):
        pj.to_lora(case.peft, case.perturbed, **options)
