"""The papers' hyperparameters: `experiments/published/hparams_*.csv`."""

from __future__ import annotations

import csv
import functools

from experiments.published import FOLDER


@functools.cache
def lines(name: str) -> tuple[dict[str, str], ...]:
    """Return the lines of `hparams_<name>.csv`."""
    with (FOLDER / f"hparams_{name}.csv").open(newline="", encoding="utf-8") as stream:
        return tuple(csv.DictReader(stream))


def line(name: str, **where: str) -> dict[str, str]:
    """Return the one line whose columns have these values.

    Raises:
        LookupError: there is none, or there are several.

    >>> line("hydra_glue", task="rte")["weight_decay"]
    '0.2'
    """
    wanted = where.items()
    found = [one for one in lines(name) if all(one[k] == v for k, v in wanted)]
    if len(found) != 1:
        raise LookupError(
            f"hparams_{name}.csv: expected one line with {where}, found {len(found)}"
        )
    return found[0]
