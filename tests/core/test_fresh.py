"""Fresh adapters: a site's own draw, by one program for all sites of a form."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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


def test_a_site_draws_by_the_index_of_its_leaf():
    method, key = pj.LoRA(rank=2, alpha=3.0), jax.random.key(5)
    peft = adapted(3, method)
    found = peft.init(key)
    assert [*found] == [site.path for site in peft.sites]
    for site in peft.sites:
        own = method.init(jax.random.fold_in(key, site.index), site.layer())
        np.testing.assert_array_equal(found[site.path]["a"], own["a"])
    drawn = [np.asarray(p["a"]) for path, p in found.items() if path != "head/kernel"]
    assert len({a.tobytes() for a in drawn}) == 3


def draws(depth, method):
    """How many arrays of random numbers the program of `init` makes."""
    lowered = jax.jit(adapted(depth, method).init).lower(jax.random.key(0))
    return len(re.findall(r"call @_uniform", lowered.as_text()))


def test_more_sites_of_a_form_are_no_larger_program():
    method = pj.LoRA(rank=2, alpha=3.0)
    assert draws(5, method) == draws(2, method) == 2  # the blocks' form, and the head's


class Drawer(pj.LoRA):
    """Has no hash: each of its sites is drawn alone."""

    __hash__ = None


def test_a_method_without_a_hash_draws_the_same():
    key = jax.random.key(1)
    found, wanted = (
        adapted(2, method(rank=2, alpha=3.0)).init(key) for method in (Drawer, pj.LoRA)
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
