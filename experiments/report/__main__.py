"""Write the table of a folder of runs: `python -m experiments.report DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import cli
from experiments.report import write


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the table of the folder that the command line names."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "DIR", type=cli.folder, help="the --workdir of experiments.table"
    )
    write(parser.read(argv).DIR)


if __name__ == "__main__":
    sys.exit(main())
