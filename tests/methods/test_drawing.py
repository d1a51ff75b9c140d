"""The supernet's structures are data: drawing them compiles nothing."""

from functools import partial

import jax
import numpy as np
import pytest

from tests.helpers import supernet_case

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def supernet():
    return supernet_case.supernet()


def test_fifty_structures_compile_once(supernet):
    _, variables, images, peft, adapters = supernet
    count = 0

    @jax.jit
    def run(adapters):
        nonlocal count
        count += 1
        return peft.apply(variables, adapters, images)

    sample = jax.jit(partial(supernet_case.drawn, peft))
    outputs = [
        run(sample(adapters, key)) for key in jax.random.split(jax.random.key(3), 50)
    ]
    assert count == 1
    assert len({np.asarray(y).tobytes() for y in outputs}) == 50


def test_sites_draw_independently_and_uniformly(supernet):
    *_, peft, adapters = supernet
    draw = jax.jit(jax.vmap(partial(supernet_case.drawn, peft, adapters)))
    drawn = draw(jax.random.split(jax.random.key(4), 600))
    structures = [p["structure"] for p in drawn.values() if "structure" in p]
    assert len(structures) == 8
    codes = np.stack(structures, 1).reshape(-1, 5)
    for column, allowed in zip(
        codes.T, ((0, 1, 2, 3),) * 2 + ((0, 2, 3),) + ((0, 1, 2),) * 2
    ):
        found, counts = np.unique(column, return_counts=True)
        assert tuple(found) == allowed
        # five standard deviations of a binomial share
        share = 1 / len(allowed)
        spread = 5 * (share * (1 - share) / len(column)) ** 0.5
        assert np.abs(counts / len(column) - share).max() < spread
    first, second = structures[:2]
    assert (np.asarray(first) != np.asarray(second)).any(-1).mean() > 0.9


def test_only_the_drawn_path_learns(supernet):
    _, variables, images, peft, adapters = supernet
    chosen = dict(adapters)
    for path, p in adapters.items():
        if "structure" in p:
            chosen[path] = {**p, "structure": np.array([0, 3, 0, 0, 0], np.int32)}
    trainable, frozen = peft.partition(chosen)

    def loss(trainable):
        return peft.apply(variables, peft.combine(trainable, frozen), images).std()

    for path, p in jax.jit(jax.grad(loss))(trainable).items():
        for name, g in p.items():
            drawn = path.startswith("head") or name in ("b_in", "b_out")
            assert bool((g != 0).any()) == drawn, (path, name)
