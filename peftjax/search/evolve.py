"""Evolutionary search over the structures of a supernet.

Chavan et al., arXiv 2306.07967, the second stage; settings and operators are those of
the released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import jax
import numpy as np

from peftjax.search.space import Space

Genes = tuple[tuple[int, ...], ...]
Score = Callable[[np.ndarray], Sequence[float] | np.ndarray]
State = dict[str, Any]

TRIES = 10  # proposals for each mutant and crossover, as released
RANDOM_ROUNDS = 100  # of as many for random candidates, where it has no bound


class Candidate(NamedTuple):
    """One evaluated structure.

    Attributes:
        genes: a row for each layer of `Space`.
        parameters: by `Space.count`.
        score: what `score` gave.
        generation: in which it was evaluated; 0 is the random start.
        origin: `"random"`, `"mutant"` or `"crossover"`.
    """

    genes: Genes
    parameters: int
    score: float
    generation: int
    origin: str


class Found(NamedTuple):
    """What a search found.

    Attributes:
        best: the candidate with the highest score, the earlier one of equals.
        archive: all evaluated candidates, in the order of their evaluation.
        history: for each generation how many candidates each origin gave, and best and
            mean score of the generation and the best so far.
    """

    best: Candidate
    archive: list[Candidate]
    history: list[dict[str, Any]]


def evolve(
    score: Score,
    space: Space,
    limit: int,
    key: jax.Array,
    population: int = 50,
    generations: int = 20,
    parents: int = 10,
    mutants: int = 25,
    crossovers: int = 25,
    p: float = 0.2,
    *,
    state: State | None = None,
    save: Callable[[State], None] | None = None,
) -> Found:
    """Search for the structure with the highest score within a number of parameters.

    Generation 0 is random. Each later one has mutants of the best candidates so far,
    then crossovers of two of them, then random candidates until the population is full;
    admitted is what is new and within the limit. All draws are uniform. A mutant draws
    each gene anew with probability p; a crossover takes each from either parent.

    Departures from the released code:

    - Its loader gives the test split of the task as the one to select on unless told
      otherwise, and so its first runs chose the structure on test. Here `score` says
      what is selected on: give it a validation split.
    - It scores the last generation and never ranks it. Here all count.
    - It draws random candidates for ever where a limit is out of reach or the space
      is used up. Here tries are bounded: 10 for each mutant and crossover, as there,
      and 1,000 for each random one; a generation may then be smaller.

    Args:
        score: `score(genes [n, layers, 5]) -> [n]` finite numbers, higher is better;
            `make_score` builds one. It is called once a generation.
        space: what to search.
        limit: the most parameters, by `Space.count`.
        key: a PRNG key; with the scores it decides everything.
        population: candidates per generation.
        generations: after the random one.
        parents: how many of the best have children.
        mutants: per generation.
        crossovers: per generation.
        p: probability that a mutant draws a gene anew.
        state: of an unfinished search, to go on from; also from one of fewer
            `generations`. The result is that of one uninterrupted search.
        save: called with the state after each generation, a new JSON-able object.

    Raises:
        ValueError: a setting out of range; a limit that no random candidate meets;
            scores of a wrong number or not finite; a state of another search.

    >>> import flax.linen as nn, jax.numpy as jnp, peftjax as pj
    >>> model, x = nn.Dense(4), jnp.ones((1, 6))
    >>> v = model.init(jax.random.key(0), x)
    >>> rules = {"kernel": pj.GLoRASupernet(rank=2)}
    >>> space = Space(pj.adapt(model.apply, v, x, rules=rules))
    >>> found = evolve(space.count, space, limit=30, key=jax.random.key(0))
    >>> found.best.parameters
    30
    """
    search = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "limit": int(limit),
        "population": population,
        "parents": parents,
        "mutants": mutants,
        "crossovers": crossovers,
        "p": p,
        "space": [
            [site.path, [*site.stack], site.d_in, site.d_out, method.rank]
            for site, method in space.supernets
        ],
        "ranks": space.ranks and [*space.ranks],
    }
    _check(search, generations)
    archive, history = _restored(state, search)
    for generation in range(len(history), generations + 1):
        rng = np.random.default_rng([*search["key"], generation])
        admitted = _proposed(rng, space, search, archive)
        archive += _scored(score, admitted, generation)
        history.append(_summary(archive, generation))
        if save is not None:
            rows = [candidate._asdict() for candidate in archive]
            save({"search": search, "archive": rows, "history": [*history]})
    return Found(_ranked(archive)[0], archive, history)


class _Admission:
    """The candidates of one generation: proposals that are new and within the limit."""

    def __init__(self, space: Space, limit: int, archive: Iterable[Candidate]):
        self.space, self.limit = space, limit
        self.seen = {np.array(c.genes, np.int32).tobytes() for c in archive}
        self.rows: list[tuple[np.ndarray, int, str]] = []
        self.smallest = np.inf

    def fill(
        self,
        origin: str,
        wanted: int,
        propose: Callable[[int], np.ndarray],
        rounds: int = 1,
    ) -> None:
        """Admit as many as are wanted, out of `TRIES` proposals for each and round."""
        full = len(self.rows) + wanted
        for _ in range(rounds):
            if len(self.rows) == full:
                return
            proposals = propose(TRIES * wanted)
            counts = self.space.count(proposals)
            self.smallest = min(self.smallest, counts.min())
            for i in np.flatnonzero(counts <= self.limit):
                name = proposals[i].tobytes()
                if len(self.rows) < full and name not in self.seen:
                    self.seen.add(name)
                    self.rows.append((proposals[i], int(counts[i]), origin))


def _proposed(
    rng: np.random.Generator,
    space: Space,
    search: dict[str, Any],
    archive: list[Candidate],
) -> list[tuple[np.ndarray, int, str]]:
    """Return the candidates of the next generation, not yet scored."""
    admission = _Admission(space, search["limit"], archive)
    parents = _ranked(archive)[: search["parents"]]
    pool = np.array([parent.genes for parent in parents], np.int32)

    def mutated(number: int) -> np.ndarray:
        old = pool[rng.integers(len(pool), size=number)]
        anew = rng.random(old.shape) < search["p"]
        return np.where(anew, space.random(rng, number), old)

    def crossed(number: int) -> np.ndarray:
        first, second = pool[rng.integers(len(pool), size=(2, number))]
        return np.where(rng.random(first.shape) < 0.5, first, second)

    if parents:
        admission.fill("mutant", search["mutants"], mutated)
        admission.fill("crossover", search["crossovers"], crossed)
    missing = search["population"] - len(admission.rows)
    admission.fill("random", missing, partial(space.random, rng), RANDOM_ROUNDS)
    if not parents and not admission.rows:
        raise ValueError(
            f"limit={search['limit']:,}: the smallest of "
            f"{missing * TRIES * RANDOM_ROUNDS:,} random candidates has "
            f"{admission.smallest:,} parameters; raise the limit to that or more, or "
            "lower the supernet's rank"
        )
    return admission.rows


def _scored(
    score: Score, admitted: list[tuple[np.ndarray, int, str]], generation: int
) -> list[Candidate]:
    if not admitted:
        return []
    scores = [float(s) for s in score(np.stack([genes for genes, *_ in admitted]))]
    if len(scores) != len(admitted):
        raise ValueError(
            f"score: expected {len(admitted)} numbers, one for each candidate, found "
            f"{len(scores)}"
        )
    for (genes, *_), value in zip(admitted, scores):
        if not isfinite(value):
            raise ValueError(
                f"score: {value} for the candidate {genes.tolist()}; expected finite "
                "numbers. Has the supernet diverged?"
            )
    return [
        Candidate(tuple(map(tuple, genes.tolist())), count, value, generation, origin)
        for (genes, count, origin), value in zip(admitted, scores)
    ]


def _ranked(archive: list[Candidate]) -> list[Candidate]:
    return sorted(archive, key=lambda candidate: -candidate.score)


def _summary(archive: list[Candidate], generation: int) -> dict[str, Any]:
    new = [c for c in archive if c.generation == generation]
    origins = [c.origin for c in new]
    return {
        "generation": generation,
        **{name: origins.count(name) for name in ("random", "mutant", "crossover")},
        "best": max((c.score for c in new), default=None),
        "mean": sum(c.score for c in new) / len(new) if new else None,
        "best_so_far": max(c.score for c in archive),
    }


def _check(search: dict[str, Any], generations: int) -> None:
    counts = {**search, "generations": generations}
    least = {"population": 1, "parents": 1, "mutants": 0, "crossovers": 0}
    for name, lowest in {**least, "generations": 0}.items():
        if counts[name] < lowest:
            raise ValueError(f"{name}={counts[name]}: expected at least {lowest}")
    children = search["mutants"] + search["crossovers"]
    if children > search["population"]:
        raise ValueError(
            f"mutants + crossovers = {children}: expected at most "
            f"population={search['population']}"
        )
    if not 0 <= search["p"] <= 1:
        raise ValueError(f"p={search['p']}: expected a probability")
    if not search["limit"] >= 0:
        raise ValueError(
            f"limit={search['limit']:,}: expected at least 0, the parameters of the "
            "smallest candidate, which is the frozen model"
        )


def _restored(
    state: State | None, search: dict[str, Any]
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    if state is None:
        return [], []
    differing = [n for n, value in search.items() if state["search"].get(n) != value]
    if differing:
        raise ValueError(
            "state: of another search: "
            + "; ".join(
                f"{name}: expected {search[name]}, found {state['search'].get(name)}"
                for name in differing
            )
        )
    rows = [
        {**row, "genes": tuple(map(tuple, row["genes"]))} for row in state["archive"]
    ]
    return [Candidate(**row) for row in rows], list(state["history"])
