"""GLoRA as its paper has it: train a supernet, search it, evaluate once on test.

`python -m experiments.search --config configs/quickstart.py:method=glora
    --workdir DIR --limit 12000`

The configuration's GLoRA layers become a supernet of their rank, which is trained as
the configuration says, a random structure in each step. The search scores structures
with the supernet's weights on the validation split; the best becomes fixed GLoRA
(`to_glora`) and is evaluated once on the test split. `--retrain` trains it from scratch
first, by `experiments.finetune` in `DIR/retrained`, on all examples of the task.

The authors' first release searched on the test split; `selection=best_on_test` in the
configuration does that, and every result says so.

`--resume` continues after any interruption, to the same archive: the supernet from its
last checkpoint, the search from its last generation.

In `DIR`: `search.json` (settings, state, archive), `supernet/`, `result.json`,
`adapter.*`, `merged.safetensors`, `archive.png`, `structure.png`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from experiments import cli
from experiments.preemption import stop_on_signals
from experiments.records import title
from experiments.search.supernet import on_test
from experiments.search.work import ON_TEST, run
from experiments.workdir import RESULT
from peftjax.training.progress import Progress

EVOLVE = {
    "population": 50,
    "generations": 20,
    "parents": 10,
    "mutants": 25,
    "crossovers": 25,
    "p": 0.2,
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Search, as the command line says."""
    parser = cli.Parser(__doc__)
    parser.flag(
        "--workdir", type=cli.folder, required=True, help="folder of the search"
    )
    parser.flag("--limit", type=int, required=True, help="most parameters, head aside")
    for name, default in EVOLVE.items():
        help = f"{name} of evolve, {default} by default"
        parser.flag(f"--{name}", type=type(default), default=default, help=help)
    parser.flag("--retrain", action="store_true", help="train what was found anew")
    parser.flag("--resume", action="store_true", help="continue the folder's search")
    options = parser.read(argv)
    config = options.config.config()
    cli.keep_programs(config.paths.cache)
    with stop_on_signals() as stop, Progress() as shown:
        result = run(
            config,
            options.workdir,
            options.limit,
            retrain=options.retrain,
            resume=options.resume,
            stop=stop,
            tell=partial(shown.tell, title(config)),
            **{name: getattr(options, name) for name in EVOLVE},
        )
    if result["status"] == "failed":
        raise SystemExit(f"{options.workdir}: FAILED: {result['error']}")
    print(f"{config.task}, seed {config.seed}: {options.workdir / RESULT}")
    if on_test(config):
        print(f"  {ON_TEST}")
    for name, value in {**result["search"], **result["scores"]}.items():
        print(f"  {name:20} {value}")


if __name__ == "__main__":
    sys.exit(main())
