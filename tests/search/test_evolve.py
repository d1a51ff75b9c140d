"""The evolutionary search: against enumeration, limits, going on from a state."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.search import Space, evolve
from tests.search.test_space import dense, every, small, vit_b

KEY = jax.random.key(0)
FEW = dict(population=10, generations=4, parents=3, mutants=4, crossovers=4)


def two_layers():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="second")(nn.relu(nn.Dense(5, name="first")(x)))

    model, x = Two(), jnp.ones((3, 6))
    variables = model.init(KEY, x)
    rules = {".*/kernel": pj.GLoRASupernet(rank=2)}
    return Space(pj.adapt(model.apply, variables, x, rules=rules))


def landscape(space, seed):
    """Return a score with a random term for each gene and each pair of genes."""
    rng, genes = np.random.default_rng(seed), 5 * space.layers
    main = rng.normal(size=(genes, 4))
    pairs = 0.5 * rng.normal(size=(genes, genes, 4, 4))

    def score(candidates):
        flat = candidates.reshape(len(candidates), genes)
        total = main[np.arange(genes), flat].sum(-1)
        for i, j in zip(*np.triu_indices(genes, 1)):
            total += pairs[i, j, flat[:, i], flat[:, j]]
        return total

    return score


def better(space, limit, score, found):
    """Return how many candidates of the whole space beat the one found."""
    candidates = every(space)
    scores = score(candidates[space.count(candidates) <= limit])
    return (scores > found.best.score + 1e-9).sum()


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_optimum_of_one_layer(share):
    """All 432 structures are fewer than the budget: every one in the limit is tried."""
    space = dense()
    counts = space.count(every(space))
    limit = int(np.quantile(counts, share))
    for seed in range(10):
        score = landscape(space, seed)
        found = evolve(score, space, limit, jax.random.key(seed))
        assert better(space, limit, score, found) == 0
        assert len(found.archive) == (counts <= limit).sum()


def test_optimum_of_one_layer_with_a_fifth_of_its_structures():
    space, evolved, drawn = dense(), 0, 0
    limit = space.count(every(space)).max()
    budget = dict(population=16, generations=5, parents=5, mutants=8, crossovers=8)
    for seed in range(10):
        score, key = landscape(space, seed), jax.random.key(seed)
        found = evolve(score, space, limit, key, **budget)
        random = evolve(score, space, limit, key, population=96, generations=0)
        assert len(found.archive) == len(random.archive) == 96
        evolved += better(space, limit, score, found) == 0
        drawn += better(space, limit, score, random) == 0
    assert evolved >= 7 > 5 > drawn


def test_optimum_of_two_layers():
    """Of 186,624 structures 1,050 are tried; as many random ones are worse."""
    space = two_layers()
    limit = int(np.quantile(space.count(every(space)), 0.5))
    evolved, drawn = [], []
    for seed in range(10):
        score, key = landscape(space, seed), jax.random.key(seed)
        found = evolve(score, space, limit, key)
        random = evolve(score, space, limit, key, population=1050, generations=0)
        assert len(found.archive) == len(random.archive) == 1050
        assert found.best.parameters <= limit
        evolved.append(better(space, limit, score, found))
        drawn.append(better(space, limit, score, random))
    assert max(evolved) <= 5 and evolved.count(0) >= 7
    assert np.median(drawn) >= 20 and drawn.count(0) <= 1


def test_a_generation_is_as_released():
    peft, *_ = small()
    space, limit, calls = Space(peft), 1000, []

    def score(genes):
        calls.append(len(genes))
        return (genes == 2).mean((1, 2))

    found = evolve(score, space, limit, KEY, generations=3)
    assert calls == [50] * 4
    origins = [[h[n] for n in ("random", "mutant", "crossover")] for h in found.history]
    assert origins == [[50, 0, 0]] + [[0, 25, 25]] * 3
    genes = np.array([c.genes for c in found.archive])
    assert len(np.unique(genes, axis=0)) == 200
    assert [c.parameters for c in found.archive] == space.count(genes).tolist()
    assert max(c.parameters for c in found.archive) <= limit
    assert found.best.score == max(c.score for c in found.archive)
    assert found.history[-1]["best_so_far"] == found.best.score
    # Children have genes of their parents: 0.2 are drawn anew, of which some the same.
    start = sorted(
        (c for c in found.archive if c.generation == 0), key=lambda c: -c.score
    )
    pool = np.array([c.genes for c in start[:10]])
    kept = {
        origin: np.mean(
            [
                (np.array(c.genes) == pool).mean((1, 2)).max()
                for c in found.archive
                if (c.generation, c.origin) == (1, origin)
            ]
        )
        for origin in ("mutant", "crossover")
    }
    assert 0.8 < kept["mutant"] < 0.92 and 0.6 < kept["crossover"] < 0.8
    crossed = [c for c in found.archive if (c.generation, c.origin) == (1, "crossover")]
    assert all((np.array(c.genes) == pool).any(0).all() for c in crossed)


def test_equal_scores_keep_their_order():
    found = evolve(lambda genes: np.zeros(len(genes)), dense(), 30, KEY, **FEW)
    assert found.best == found.archive[0]


def test_the_key_decides():
    peft, *_ = small()
    space = Space(peft)
    score = landscape(space, 0)
    first, again, other = (
        evolve(score, space, 1500, jax.random.key(seed), **FEW) for seed in (3, 3, 4)
    )
    assert first == again and first.archive != other.archive


def test_resuming_equals_the_uninterrupted_search():
    peft, *_ = small()
    space = Space(peft)
    score, states = landscape(space, 0), []
    whole = evolve(
        score, space, 1500, KEY, **FEW, save=lambda s: states.append(json.dumps(s))
    )
    assert len(states) == 5
    for state in map(json.loads, states):
        assert evolve(score, space, 1500, KEY, **FEW, state=state) == whole
    longer = {**FEW, "generations": 7}
    on = evolve(score, space, 1500, KEY, **longer, state=json.loads(states[-1]))
    assert on == evolve(score, space, 1500, KEY, **longer)
    assert on.archive[: len(whole.archive)] == whole.archive


def test_killed_within_a_generation():
    peft, *_ = small()
    space = Space(peft)
    score, states, calls = landscape(space, 0), [], 0

    def killed(genes):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return score(genes)

    with pytest.raises(KeyboardInterrupt):
        evolve(killed, space, 1500, KEY, **FEW, save=states.append)
    assert len(states) == 2
    on = evolve(score, space, 1500, KEY, **FEW, state=states[-1])
    assert on == evolve(score, space, 1500, KEY, **FEW)


def test_a_state_of_another_search_is_refused():
    space, states = dense(), []
    score = landscape(space, 0)
    evolve(score, space, 40, KEY, **FEW, save=states.append)
    for change, message in [
        (dict(limit=41), "limit: expected 41, found 40"),
        (dict(key=jax.random.key(1)), r"key: expected \[0, 1\], found \[0, 0\]"),
        (dict(p=0.5), "p: expected 0.5, found 0.2"),
        (dict(space=dense(rank=3)), "space: expected .*kernel.*3.*found .*kernel.*2"),
    ]:
        given = {"space": space, "limit": 40, "key": KEY, **FEW, **change}
        with pytest.raises(ValueError, match=f"another search: {message}"):
            evolve(score, **given, state=states[0])


def test_a_limit_out_of_reach_ends_with_what_is_reachable():
    """A random structure of a ViT-B has 499,320 parameters at rank 4, give or take."""
    never = pytest.fail
    with pytest.raises(
        ValueError,
        match=r"limit=100,000: the smallest of 50,000 .* has (2|3)\d\d,\d{3} ",
    ):
        evolve(never, vit_b(4), 100_000, KEY)
    with pytest.raises(ValueError, match=r"limit=-1: expected at least 0"):
        evolve(never, dense(), -1, KEY)


def test_a_limit_that_few_meet():
    """Few structures of a layer have one parameter at most: the search is short."""
    space = dense()
    counts = space.count(every(space))
    few = (counts <= 1).sum()
    found = evolve(landscape(space, 0), space, 1, KEY)
    assert len(found.archive) == few < 10
    assert found.history[-1] == {
        "generation": 20,
        "random": 0,
        "mutant": 0,
        "crossover": 0,
        "best": None,
        "mean": None,
        "best_so_far": found.best.score,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(population=0), "population=0: expected at least 1"),
        (dict(generations=-1), "generations=-1: expected at least 0"),
        (dict(parents=0), "parents=0: expected at least 1"),
        (dict(mutants=-1), "mutants=-1: expected at least 0"),
        (dict(mutants=8), r"mutants \+ crossovers = 12: .* population=10"),
        (dict(p=1.5), r"p=1\.5: expected a probability"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        evolve(pytest.fail, dense(), 30, KEY, **{**FEW, **settings})


def test_bad_scores():
    with pytest.raises(ValueError, match="expected 10 numbers.*found 9"):
        evolve(lambda genes: np.zeros(len(genes) - 1), dense(), 30, KEY, **FEW)
    with pytest.raises(ValueError, match=r"score: nan for .*diverged"):
        evolve(lambda genes: [np.nan] * len(genes), dense(), 30, KEY, **FEW)
    with pytest.raises(ValueError, match=r"score: -inf for .*diverged"):
        evolve(lambda genes: [-np.inf] * len(genes), dense(), 30, KEY, **FEW)
