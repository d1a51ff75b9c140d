"""Write the table of a folder of runs: `python -m experiments.report DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.arguments import UnknownName
from experiments.report import DamagedFile, write


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments.report", description=__doc__
    )
    parser.add_argument("DIR", type=Path, help="the --workdir of experiments.table")
    try:
        write(parser.parse_args().DIR)
    except (DamagedFile, OSError, UnknownName) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
