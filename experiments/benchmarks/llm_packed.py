"""GSM8K's training texts packed, padded, and padded in buckets: losses and tokens/s.

`python -m experiments.benchmarks.llm_packed --data-dir DIR`

The same texts of at most 256 tokens, in rows of 512 that hold several, in rows of 256
that hold one, and in rows as long as the bucket of a batch's longest; batches have
about as many tokens. A step is loss and gradient of a LoRA on SmolLM2-135M, and Adam.
Losses are those of the first state, summed over the tokens learned of all texts, so
that all three are equal up to rounding.
Tokens are those of texts, not padding; the three ways take turns.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from configs.llm.common import BUCKETS
from experiments import cli
from experiments.benchmarks import llm_case
from experiments.measure import interleave, ratio
from experiments.records import circumstances
from peftjax import storage
from peftjax.data.chat import Chats
from peftjax.data.packing import pack

LENGTH, LIMIT = 512, 256
TEXTS = 16  # for each row of a batch
Batches = list[dict[str, np.ndarray]]


def layouts(chats: Chats, pad: int, rows: int) -> dict[str, Batches]:
    """Return the batches of each way to lay out the texts."""
    single = rows * LENGTH // LIMIT
    order = [np.arange(i, i + single) for i in range(0, len(chats), single)]

    def alone(buckets: Sequence[int]) -> Batches:
        columns = chats.columns(pad, buckets)
        return [{name: part[own] for name, part in columns.items()} for own in order]

    packed = pack(chats, LENGTH, pad)
    missing = -len(packed["input_ids"]) % rows  # rows of padding alone
    whole = {n: np.pad(part, ((0, missing), (0, 0))) for n, part in packed.items()}
    starts = range(0, len(whole["input_ids"]), rows)
    several = [{n: part[i : i + rows] for n, part in whole.items()} for i in starts]
    return {"padded": alone([LIMIT]), "buckets": alone(BUCKETS), "packed": several}


def measured(case: llm_case.Case, rows: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return losses and times of each layout."""
    peft, state = llm_case.adapted(case.model, case.variables)
    step = llm_case.step(peft)

    def epoch(batches: Batches) -> Any:
        return [step(case.variables, state, batch)[1] for batch in batches]

    made = layouts(case.chats, case.pad, rows)
    calls = {name: functools.partial(epoch, own) for name, own in made.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, call in calls.items():
        total, count = np.array(jax.device_get(call()), np.float64).sum(0).tolist()
        computed = sum(batch["input_ids"].size for batch in made[name])
        loss = {"loss": float(total / count), "learned": int(count)}
        found[name] = {**loss, "batches": len(made[name]), "computed": computed}
    seconds = interleave(calls, rounds, warmup=0)
    for name, own in found.items():
        own["tokens_per_second"] = len(case.chats.ids) / median(seconds[name])
        own["padded_over_own_time"] = ratio(seconds, "padded", name)
    return found


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    llm_case.flags(parser)
    out = {"default": Path("runs/llm_packed.json"), "help": "result"}
    parser.flag("--out", type=Path, **out)
    options = parser.read(argv)
    case = llm_case.case(options, TEXTS * options.rows)
    found = measured(case, options.rows, options.rounds)
    tokens = len(case.chats.ids)
    columns = ("loss", "tokens computed", "of texts", "tokens/s", "padded / own, time")
    table = Table("", *columns)
    for name, own in found.items():
        share = f"{tokens / own['computed']:.2f}"
        speed = f"{own['tokens_per_second']:.0f}", f"{own['padded_over_own_time']:.2f}"
        table.add_row(name, f"{own['loss']:.6f}", str(own["computed"]), share, *speed)
    Console(width=100).print(table)
    shapes = {"rows": options.rows, "tokens": LENGTH, "dtype": options.dtype}
    sizes = {"texts": len(case.chats), "tokens": tokens, "drawn": options.drawn}
    document = {"shapes": shapes, "rounds": options.rounds, **sizes, "layouts": found}
    storage.write_json(options.out, {**document, **circumstances()})
    print(f"Written: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
