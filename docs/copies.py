"""Pages of the site that lie elsewhere in the clone, where one looks first."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "core.md": "peftjax/core/README.md",
}


def pages() -> dict[str, str]:
    """Return the pages by their address; links into `docs/` lead where they did."""
    texts = {uri: (ROOT / file).read_text("utf-8") for uri, file in FILES.items()}
    return {uri: text.replace("](docs/", "](") for uri, text in texts.items()}
