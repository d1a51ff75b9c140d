"""Settings are checked when a method is made; a wrong one is named with its value."""

from fractions import Fraction

import numpy as np
import pytest

import peftjax as pj
from peftjax.methods import ALL

NO_NUMBERS = ["1", None, True, (1.0,), float("nan"), float("inf"), 1j, 10**400]
STRENGTHS = [
    (pj.LoRA, {"rank": 2}, "alpha"),
    (pj.DoRA, {"rank": 2}, "alpha"),
    (pj.HydraLoRA, {"rank": 2}, "alpha"),
    (pj.Hydra, {"rank": 2}, "scale"),
]
SIZES = [
    (pj.HRA, {"rank": 2}, "eps"),
    (pj.HRA, {"rank": 2}, "penalty_weight"),
    (pj.SSF, {}, "std"),
]
RATES = [
    (pj.LoRA, {"rank": 2, "alpha": 3.0}, "dropout"),
    (pj.DoRA, {"rank": 2, "alpha": 3.0}, "dropout"),
    (pj.HydraLoRA, {"rank": 2, "alpha": 3.0}, "dropout"),
    (pj.Hydra, {"rank": 2}, "dropout"),
]
FLAGS = [
    (pj.LoRA, {"rank": 2, "alpha": 3.0}, "rs"),
    (pj.Hydra, {"rank": 2}, "branch_bias"),
    (pj.Hydra, {"rank": 2}, "learn_scale"),
    (pj.HydraLoRA, {"rank": 2, "alpha": 3.0}, "dropout_per_head"),
    (pj.HRA, {"rank": 2}, "orthogonal"),
    (pj.OFT, {"block": 2}, "neumann"),
    (pj.OFT, {"block": 2}, "share"),
    (pj.Composition, {"modules": 2, "rank": 2}, "share"),
    (pj.Composition, {"modules": 2, "rank": 2}, "detach_denominator"),
]


def refused(case, *values):
    method, settings, name = case
    for value in values:
        with pytest.raises(ValueError) as caught:
            method(**{**settings, name: value})
        message = str(caught.value)
        assert message.startswith(f"{method.__name__}({name}="), message
        assert "expected" in message


@pytest.mark.parametrize("case", STRENGTHS, ids=str)
def test_a_strength_is_a_finite_number_other_than_0(case):
    refused(case, *NO_NUMBERS, 0, -0.0)
    method, settings, name = case
    for value in (2, -1.5, np.float32(0.5), Fraction(1, 2)):
        found = getattr(method(**{**settings, name: value}), name)
        assert found == value and type(found) in (int, float)


@pytest.mark.parametrize("case", SIZES, ids=str)
def test_a_size_is_a_finite_number_of_at_least_0(case):
    refused(case, *NO_NUMBERS, -1e-9)
    method, settings, name = case
    assert getattr(method(**{**settings, name: 0.25}), name) == 0.25


@pytest.mark.parametrize("case", RATES, ids=str)
def test_a_rate_is_a_probability_below_1(case):
    refused(case, *NO_NUMBERS, -0.1, 1, 1.5)


@pytest.mark.parametrize("case", FLAGS, ids=str)
def test_a_flag_is_true_or_false(case):
    refused(case, 0, 1, "yes", None, np.True_)


@pytest.mark.parametrize("name", ["weights", "dropout"])
@pytest.mark.parametrize("value", [3.0, None, (1.0,), ("a", "b"), (True, False)])
def test_numbers_of_a_composition(name, value):
    with pytest.raises(ValueError, match=rf"Composition\({name}="):
        pj.Composition(2, 2, **{name: value})
    for bad in (float("nan"), float("inf"), 10**400):
        with pytest.raises(ValueError, match=rf"Composition\({name}="):
            pj.Composition(2, 2, **{name: (0.5, bad)})


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "2", None, (2,), float("nan")])
def test_a_rank_is_an_integer_of_at_least_1(rank):
    others = {"alpha": 3.0, "modules": 2, "target_rank": 1, "width": 4, "terms": 2}
    for method in ALL:
        fields = method.__dataclass_fields__
        if "rank" in fields:
            needed = {name: value for name, value in others.items() if name in fields}
            with pytest.raises(ValueError, match=rf"{method.__name__}\(rank="):
                method(rank=rank, **needed)
