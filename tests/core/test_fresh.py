"""Fresh adapters: a site's own draw, by one program for all sites of a form."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj


class Blocks(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = nn.Dense(8, name=f"up_{i}")(x)
        return nn.Dense(3, name="head")(x)


def adapted(depth, method):
    model, x = Blocks(depth), jnp.ones((2, 8))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rules = {r"(up_\d+|head)/kernel": method}
    return pj.adapt(model.apply, variables, x, rules=rules)


# One that draws alone, and one that starts from the weight too.
METHODS = [pj.LoRA(rank=2, alpha=3.0), pj.DoRA(rank=2, alpha=3.0)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_site_draws_by_the_index_of_its_leaf(method):
    key, peft = jax.random.key(5), adapted(3, method)
    found, leaves = peft.init(key), jax.tree.leaves(peft.base)
    assert [*found] == [site.path for site in peft.sites]
    for site in peft.sites:
        layer = site.layer(leaves[site.index])
        own = method.init(jax.random.fold_in(key, site.index), layer)
        assert found[site.path].keys() == own.keys()
        np.testing.assert_array_equal(found[site.path]["a"], own["a"])
        for name, wanted in own.items():  # norms are summed in another order in a loop
            np.testing.assert_allclose(found[site.path][name], wanted, rtol=1e-6)
    drawn = [np.asarray(p["a"]) for path, p in found.items() if path != "head/kernel"]
    assert len({a.tobytes() for a in drawn}) == 3


def draws(depth, method):
    """How many arrays of random numbers the program of `init` makes."""
    lowered = jax.jit(adapted(depth, method).init).lower(jax.random.key(0))
    return len(re.findall(r"call @_uniform", lowered.as_text()))


def loops(depth, method):
    """How many loops the program of `init` holds; each draw of random numbers is some.

    XLA compiles them all, also those of one function that is called several times.
    """
    lowered = jax.jit(adapted(depth, method).init).lower(jax.random.key(0))
    return len(re.findall(r" while\(", lowered.compile().as_text()))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_more_sites_of_a_form_are_no_larger_program(method):
    assert draws(5, method) == draws(2, method) == 2  # the blocks' form, and the head's
    assert loops(5, method) == loops(2, method) > 0


class Drawer(pj.LoRA):
    """Has no hash: each of its sites is drawn alone."""

    __hash__ = None


def test_a_method_without_a_hash_draws_the_same():
    key = jax.random.key(1)
    found, wanted = (
        adapted(2, method(rank=2, alpha=3.0)).init(key) for method in (Drawer, pj.LoRA)
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
