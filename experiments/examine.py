"""Examine a language model: the base, or the adapters of a run.

`python -m experiments.examine --config configs/llm/smollm2_gsm8k.py [--adapter RUN]`

RUN is the folder of a finished run, or the name of its adapter file.
`--config.exam.kind=mmlu --config.exam.examples=500` examines by MMLU.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peftjax as pj
from experiments import cli, tasks
from experiments.tasks.task import reading
from experiments.workdir import ADAPTER
from peftjax.hub import files


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the scores of `config.exam` as JSON."""
    parser = cli.Parser(__doc__)
    parser.flag("--adapter", type=cli.folder, help="run whose adapters are examined")
    options = parser.read(argv)
    config = options.config.config()
    cli.keep_programs(config.paths.cache)
    family = tasks.family(config)
    outline = family.outline(config)
    if outline.examine is None:
        parser.error(f"{config.name}: its task has no exam")
    base = family.base(config, outline)
    peft, adapters = None, None
    if options.adapter is not None:
        place = adapter(options.adapter)
        example = outline.example
        peft = pj.adapt(
            outline.model.apply, base, *example, rules=files.read_rules(place)
        )
        adapters = files.load(place, peft, base)
    start = time.perf_counter()
    run = SimpleNamespace(outline=outline, base=base, peft=peft)
    with reading(config.name):
        found: dict[str, Any] = outline.examine(run, adapters, watch=_progress)
    found["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(found))


def _progress(answered: int) -> None:
    print(f"{answered} answered", file=sys.stderr, flush=True)


def adapter(place: Path) -> Path:
    """Return the adapter file of a run's folder, or the file itself."""
    return place / ADAPTER if place.is_dir() else place


if __name__ == "__main__":
    sys.exit(main())
