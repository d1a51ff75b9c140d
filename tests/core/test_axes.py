"""Views of a weight: every move keeps track of the stored axes, and can be undone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from peftjax.core.axes import (
    MOVES,
    Atom,
    arrange,
    group,
    leading_index,
    reshaped,
    restore,
    row_lookup,
    shape,
    whole,
)

K = jnp.arange(24.0).reshape(2, 3, 4)


def last(function, array):
    """The last equation of a function's jaxpr."""
    return jax.make_jaxpr(function)(array).jaxpr.eqns[-1]


def test_a_stored_array_is_its_own_view():
    assert shape(whole((2, 3))) == (2, 3)
    assert whole((2,), first=5) == ((Atom(5, 1, 2),),)


@pytest.mark.parametrize(
    "new", [(6, 4), (24,), (2, 12), (2, 3, 2, 2), (1, 2, 3, 4), (2, 3, 4, 1)]
)
def test_a_reshape_along_atoms_is_followed_and_undone(new):
    view = reshaped(whole(K.shape), new)
    assert shape(view) == new
    groups = whole(K.shape)
    np.testing.assert_array_equal(arrange(K.reshape(new), view, groups), K)
    np.testing.assert_array_equal(restore(K, view, groups), K.reshape(new))


@pytest.mark.parametrize("new", [(4, 6), (8, 3), (3, 8)])
def test_a_reshape_that_cuts_across_atoms_is_none(new):
    assert reshaped(whole(K.shape), new) is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_arrange_brings_any_transpose_into_stored_order(order):
    view = tuple(whole(K.shape)[axis] for axis in order)
    groups = [group(whole(K.shape)[:2]), whole(K.shape)[2]]
    found = arrange(K.transpose(order), view, groups)
    np.testing.assert_array_equal(found, K.reshape(6, 4))
    np.testing.assert_array_equal(restore(found, view, groups), K.transpose(order))


def test_group_sorts_joins_and_forgets_single_ones():
    axes = whole((3, 1, 4))
    assert group(axes[::-1]) == (Atom(0, 1, 3), Atom(2, 1, 4))
    assert group([(Atom(0, 1, 2),), (Atom(0, 2, 3),)]) == (Atom(0, 1, 6),)


@pytest.mark.parametrize(
    "function",
    [
        lambda k: k.astype("bfloat16"),
        lambda k: k.reshape(6, 4),
        lambda k: k.transpose(2, 0, 1),
        lambda k: lax.expand_dims(k, (1,)),
        lambda k: lax.squeeze(k[None], (0,)),
        lambda k: lax.broadcast_in_dim(k, (1, 2, 3, 4), (1, 2, 3)),
        lax.stop_gradient,
    ],
)
def test_moves_describe_what_a_primitive_does(function):
    jaxpr = jax.make_jaxpr(function)(K).jaxpr
    view = whole(K.shape)
    for eqn in jaxpr.eqns:
        view = MOVES[eqn.primitive.name](eqn, view)
    value = function(K).astype("float32")
    assert shape(view) == value.shape
    np.testing.assert_array_equal(arrange(value, view, whole(K.shape)), K)


def test_a_broadcast_axis_holds_no_atoms():
    eqn = last(lambda b: jnp.broadcast_to(b, (5, 4)), jnp.ones(4))
    assert shape(MOVES[eqn.primitive.name](eqn, whole((4,)))) == (1, 4)


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda k: lax.slice(k, (1, 0, 0), (2, 3, 4)), True),
        (lambda k: lax.slice(k, (0, 1, 0), (2, 2, 4)), False),
        (lambda k: lax.slice(k, (0, 0, 0), (2, 3, 4), (2, 1, 1)), False),
        (lambda k: lax.dynamic_slice(k, (jnp.int32(1), 0, 0), (1, 3, 4)), True),
        (lambda k: lax.dynamic_slice(k, (jnp.int32(0), 0, 0), (2, 3, 1)), False),
    ],
)
def test_a_member_of_a_stack(function, expected):
    assert leading_index(last(function, K)) == expected


def gather(k, ids):
    dims = lax.GatherDimensionNumbers((1,), (0,), (0,))
    return lax.gather(k, ids, dims, (1, k.shape[1]))


def test_rows_and_members_by_gather():
    table = jnp.ones((5, 4))
    rows = jax.make_jaxpr(gather)(table, jnp.zeros((3, 1), int)).jaxpr.eqns[-1]
    assert row_lookup(rows) and not leading_index(rows)
    taken = jax.make_jaxpr(lambda k, i: k[i])(table, 2).jaxpr.eqns
    indexed = [e for e in taken if e.primitive.name in ("dynamic_slice", "gather")]
    assert [leading_index(e) for e in indexed] == [True]
