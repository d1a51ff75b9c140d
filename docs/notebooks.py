"""The notebooks, as pages: run while the site is built where EXECUTE_NOTEBOOKS=true."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def files() -> list[Path]:
    """Return the notebooks."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def nav() -> list[dict[str, str]]:
    """Return titles and addresses, as mkdocs takes them."""
    return [{title(path): f"notebooks/{path.name}"} for path in files()]


def title(path: Path) -> str:
    """Return the heading of a notebook."""
    first = json.loads(path.read_text("utf-8"))["cells"][0]["source"]
    return "".join(first).split("\n")[0].removeprefix("# ")
