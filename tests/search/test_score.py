"""Scoring candidates: one program, over chunks and devices, and a search with it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.search import Space, evolve, make_score
from peftjax.testing import perturb
from tests.search.test_space import every, small

pytestmark = pytest.mark.slow

LABELS = np.array([0, 1, 2, 0])


def run(apply, batch):
    """Return what is right, and the log-likelihood of the label."""
    logits = jax.nn.log_softmax(apply(batch["x"]))
    chosen = jnp.take_along_axis(logits, batch["label"][:, None], 1)[:, 0]
    return {"right": logits.argmax(-1) == batch["label"], "chosen": chosen}


def accuracy(rows):
    return rows["right"].mean()


def log_likelihood(rows):
    assert rows["chosen"].shape == (6,)  # two of the eight are padding
    return rows["chosen"].mean()


def supernet(scan=False):
    peft, variables, images, adapters = small(scan)
    batches = [
        {"x": images, "label": LABELS, "mask": np.ones(4, np.float32)},
        {"x": images[::-1] * 2, "label": LABELS, "mask": np.array([1, 1, 0, 0.0])},
    ]
    return Space(peft), variables, perturb(peft, adapters), batches


def one_by_one(space, variables, adapters, batches, genes):
    """Return the mean log-likelihoods without `make_score`."""

    @jax.jit
    def values(placed, batch):
        return run(lambda x: space.peft.apply(variables, placed, x), batch)["chosen"]

    scores = []
    for candidate in genes:
        placed = space.place(adapters, candidate)
        parts = np.stack([values(placed, batch) for batch in batches])
        scores.append(np.average(parts, weights=[b["mask"] for b in batches]))
    return np.array(scores)


@pytest.mark.parametrize("scan", [False, True])
def test_scores_of_candidates(scan):
    space, variables, adapters, batches = supernet(scan)
    genes = space.random(np.random.default_rng(0), 11)
    expected = one_by_one(space, variables, adapters, batches, genes)
    score = make_score(space, run, log_likelihood, variables, adapters, batches)
    np.testing.assert_allclose(score(genes), expected, rtol=1e-5)
    assert len(np.unique(expected)) == 11


def test_one_program_for_all_candidates_and_equal_scores_on_any_devices():
    space, variables, adapters, batches = supernet()
    genes, traces = space.random(np.random.default_rng(1), 20), 0

    def counted(apply, batch):
        nonlocal traces
        traces += 1
        return run(apply, batch)

    found = {}
    assert len(jax.devices()) == 8
    for devices, chunk in ((1, 1), (8, 1), (8, None), (2, 3)):
        traces = 0
        score = make_score(
            space,
            counted,
            accuracy,
            variables,
            adapters,
            batches,
            chunk=chunk,
            devices=jax.devices()[:devices],
        )
        found[devices, chunk] = score(genes)
        # what a call computes does not depend on what else it is given
        np.testing.assert_array_equal(score(genes[5:8]), found[devices, chunk][5:8])
        assert score(genes[:0]).shape == (0,)
        assert traces == 1
    for other in found.values():
        np.testing.assert_array_equal(other, found[1, 1])
    assert len(np.unique(found[1, 1])) > 1


def test_a_search_finds_the_best_structure_of_a_layer():
    """All 432 are scored; ten searches find the best in the limit."""
    model, x = nn.Dense(5), jax.random.normal(jax.random.key(0), (16, 6))
    variables = model.init(jax.random.key(1), x)
    # D scales the bias, which a fresh layer has none of
    variables["params"]["bias"] = jax.random.normal(jax.random.key(4), (5,))
    rules = {"kernel": pj.GLoRASupernet(rank=2)}
    peft = pj.adapt(model.apply, variables, x, rules=rules)
    space = Space(peft)
    adapters = perturb(peft, peft.init(jax.random.key(2)))
    y = jax.random.normal(jax.random.key(3), (16, 5))

    def loss(apply, batch):
        return {"loss": jnp.square(apply(batch["x"]) - batch["y"]).mean(-1)}

    batch = {"x": x, "y": y}
    score = make_score(
        space, loss, lambda rows: -rows["loss"].mean(), variables, adapters, [batch]
    )
    candidates = every(space)
    counts, scores = space.count(candidates), score(candidates)
    limit = int(np.median(counts))
    best = candidates[np.where(counts <= limit, scores, -np.inf).argmax()]
    for seed in range(10):
        found = evolve(score, space, limit, jax.random.key(seed), generations=5)
        np.testing.assert_array_equal(found.best.genes, best)


def test_the_found_subnet_is_the_fixed_glora():
    space, variables, adapters, batches = supernet()
    score = make_score(space, run, accuracy, variables, adapters, batches)
    few = dict(population=8, generations=2, parents=2, mutants=4, crossovers=4)
    found = evolve(score, space, 1200, jax.random.key(0), **few)
    subnet = pj.to_glora(space.peft, space.place(adapters, found.best.genes))
    images = batches[0]["x"]
    fixed = pj.adapt(space.peft.apply_fn, variables, images, rules=subnet.rules)
    sizes = [
        leaf.size
        for path, p in subnet.adapters.items()
        if not path.startswith("head")
        for leaf in p.values()
    ]
    assert sum(sizes) == found.best.parameters <= 1200

    def right(batch):
        logits = fixed.apply(variables, subnet.adapters, batch["x"])
        return (logits.argmax(-1) == batch["label"]) * batch["mask"]

    assert found.best.score == sum(right(b).sum() for b in batches) / 6


def test_bad_input():
    space, variables, adapters, batches = supernet()
    given = space, run, accuracy, variables, adapters
    with pytest.raises(ValueError, match="validation split, found no batch"):
        make_score(*given, [])
    short = {name: value[:2] for name, value in batches[1].items()}
    with pytest.raises(ValueError, match=r"several shapes.*mask its padding"):
        make_score(*given, [batches[0], short])
    with pytest.raises(ValueError, match="chunk=0: expected at least 1"):
        make_score(*given, batches, chunk=0)
    with pytest.raises(ValueError, match="gene C of layer 0"):
        make_score(*given, batches)(np.ones((1, 8, 5), np.int32))
