"""Write the table of a folder of runs: `python -m experiments.report DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments import cli
from experiments.plan import drop_abandoned
from experiments.report import write


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the table of the folder that the command line names."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument(
        "DIR", type=cli.folder, help="the --workdir of experiments.table"
    )
    parser.flag(
        "--drop-abandoned",
        action="store_true",
        help="take runs of settings that the configuration no longer has out of the "
        "plan; their folders stay",
    )
    options = parser.read(argv)
    if options.drop_abandoned:
        for place in drop_abandoned(options.DIR):
            print(f"dropped {place}")
    write(options.DIR)


if __name__ == "__main__":
    sys.exit(main())
