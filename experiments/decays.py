"""ELEVATER's search over learning rates and weight decays, and what it left.

At each of six rates, 1e-6 to 1e-1, seven decays of 1e-6 to 1e6 are tried, then the
neighbours of the best at a distance of 8, 4, 2 and 1 among 97 decays between them. The
authors' code tries the right neighbour at the left one's decay; here it is at its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from experiments import documents
from experiments.documents import DamagedFile
from peftjax import storage
from peftjax.training.metrics import read_lines

RATES = tuple(float(f"1e{power}") for power in range(-6, 0))
DECAYS = tuple(float(f"{x:.6g}") for x in np.logspace(-6, 6, 97))
COARSE, DISTANCES = 16, (8, 4, 2, 1)


def search(score: Callable[[float, float], float]) -> tuple[float, float, float]:
    """Return the best rate and decay, and their score; the first of equals.

    Args:
        score: of a rate and a decay; NaN is worse than any other.
    """

    def tried(rate: float, place: int) -> float:
        found = score(rate, DECAYS[place])
        return -math.inf if math.isnan(found) else found

    results = []
    for rate in RATES:
        places = range(0, len(DECAYS), COARSE)
        found = {place: tried(rate, place) for place in places}
        top = max(found, key=found.__getitem__)
        for distance in DISTANCES:
            beside = [top - distance, top + distance]
            for place in (x for x in beside if 0 <= x < len(DECAYS)):
                found[place] = tried(rate, place)
                if found[place] > found[top]:
                    top = place
        results.append((rate, DECAYS[top], found[top]))
    return max(results, key=lambda result: result[2])


def best(file: str, task: str, method: str) -> tuple[float, float]:
    """Return rate and decay of the best trial of a task and method.

    Args:
        file: `search.jsonl` of `experiments.decay_search`.
        task: its name.
        method: its name.

    Raises:
        DamagedFile: the file is absent, no search's, or has no such trial.
    """
    place = storage.path(file)
    if not place.is_file():
        raise DamagedFile(f"{file}: no such file; experiments.decay_search makes it")
    scored = {}
    for number, line in enumerate(read_lines(place), start=1):
        where = f"{file}, line {number}"
        documents.check(where, line, documents.Trial, "search again")
        if (line["task"], line["method"]) == (task, method):
            if line["score"] is not None:
                scored[line["lr"], line["weight_decay"]] = line["score"]
    if not scored:
        raise DamagedFile(
            f"{file}: expected trials of {task}, {method}, found none with a score; "
            f"experiments.decay_search --tasks {task} --methods {method} makes them"
        )
    return max(scored, key=scored.__getitem__)
