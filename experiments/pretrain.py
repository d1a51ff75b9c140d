"""Train the base model from scratch, once; later calls read it from the cache.

`python -m experiments.pretrain --config configs/quickstart.py`

SIGTERM and Ctrl-C save a checkpoint after the present step, and the exit status is then
75: the same command goes on from there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import cli, tasks
from experiments.preemption import stop_on_signals


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Train the base of the configuration's task, as the command line says."""
    config = cli.Parser(__doc__).read(argv).config.config()
    cli.keep_programs(config.paths.cache)
    family = tasks.family(config)
    with stop_on_signals() as stop:
        family.base(config, family.outline(config), stop)


if __name__ == "__main__":
    sys.exit(main())
