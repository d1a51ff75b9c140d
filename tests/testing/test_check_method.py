"""Every method keeps every invariant; a broken one is caught."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

import peftjax as pj
from peftjax import testing
from peftjax.core.method import Method, Rows
from peftjax.methods import ALL
from tests.methods.test_every_method import checked

pytestmark = pytest.mark.slow

# Plain LoRA is the example in the docstring of check_method.
METHODS = [one for method in ALL for one in checked(method)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_check_method(method):
    count = 10 if isinstance(method, pj.OutputMethod) else 11
    assert len(testing.check_method(method)) == count


def test_a_method_is_compiled_once_for_each_way_it_is_evaluated():
    testing.check_method(pj.SSF())  # the models themselves
    count = 0

    def listen(event, duration, **_):
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    testing.check_method(pj.IA3())
    assert count == 5  # start, gradients, merge, stack, in bfloat16


@dataclass(frozen=True)
class Broken(pj.LoRA):
    """LoRA with one fault."""

    rank: int = 2
    alpha: float = 7.0
    fault: str = ""

    @property
    def at_init(self):
        return "exact"

    def count(self, layer):
        return super().count(layer) + (self.fault == "count")

    def init(self, key, layer):
        p = super().init(key, layer)
        if self.fault == "start":
            p = jax.tree.map(lambda a: a + 0.01, p)
        if self.fault == "dtype":
            p = jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)
        if self.fault == "unused":
            p["more"] = jnp.zeros(layer.d_out)
        return p

    @property
    def float32(self):
        return ("bb",) if self.fault == "name" else ()

    def formula(self, p, x, kernel, bias, *, key=None):
        if self.fault == "kernel":
            return x @ (kernel + 3.5 * (p["a"] @ p["b"])) + bias
        if self.fault == "one mask" and key is not None:
            key = jax.random.key(0)
        if self.fault == "no mask":
            key = None
        if self.fault == "layout" and isinstance(x, Rows):
            first = x.weight.site.shape[0]  # 3 where the window comes first
            p = {**p, "a": p["a"] if first == 3 else p["a"][::-1]}
        if self.fault == "nothing":
            return x @ kernel + bias + 0 * ((x @ p["a"]) @ p["b"])
        if self.fault == "gradient":
            p = {**p, "a": jax.lax.stop_gradient(p["a"])}
        y = super().formula(p, x, kernel, bias, key=key)
        if self.fault == "merge":
            # differs on a merge's single row
            y = y * (1.01 if getattr(x, "ndim", 2) == 2 and x.shape[0] == 1 else 1.0)
        return y


@pytest.mark.parametrize(
    "fault, check",
    [
        ("count", testing.counts),
        ("dtype", testing.counts),
        ("start", testing.starts),
        ("nothing", testing.merged),
        ("merge", testing.merged),
        ("gradient", testing.gradients),
        ("unused", testing.gradients),
        ("name", testing.names),
        ("kernel", testing.fast),
        ("one mask", testing.deterministic),
        ("no mask", testing.deterministic),
        ("layout", testing.in_bfloat16),
    ],
)
def test_each_fault_is_caught(fault, check):
    method = Broken(fault=fault, dropout=0.3 if "mask" in fault else 0.0)
    kinds = ("dense", "conv") if fault == "layout" else ("dense",)
    object.__setattr__(method, "kinds", kinds)
    case = testing.linen_case(method)
    with pytest.raises(AssertionError, match=f"{check.__name__}:"):
        check(case)


def test_a_layer_that_merges_is_caught():
    case = testing.linen_case(pj.LoRA(2, 7.0))
    apply_fn = lambda v, *x: case.apply_fn(jax.tree.map(lambda a: a**1.0, v), *x)  # noqa: E731
    slow = testing.Case(case.method, case.dtype, apply_fn, case.variables, case.inputs)
    with pytest.raises(AssertionError, match="fast: .*kernel.*pow"):
        testing.fast(slow)


def test_a_refusal_that_is_not_made_is_caught():
    @dataclass(frozen=True)
    class Lax(Method):
        kinds = ("dense", "conv")

        def init(self, key, layer):
            return {"b": jnp.zeros(layer.d_out)}

        def formula(self, p, x, kernel, bias, *, key=None):
            return x @ kernel + bias + p["b"]

    testing.refusals(testing.linen_case(Lax()))
    case = testing.linen_case(Lax())
    object.__setattr__(case.method, "kinds", ("dense", "conv", "embedding"))
    testing.refusals(case)
