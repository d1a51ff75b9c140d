"""What `mkdocs build` asks of this folder: pages that are made, not written."""

import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs import api, copies, methods  # noqa: E402


def on_config(config):
    """Put the pages made into the navigation, where it names their folder."""
    for entry in config.nav:
        for title, target in entry.items():
            if target in ("methods/", "api/"):
                entry[title] = (methods if target == "methods/" else api).nav()
    return config


def on_files(files, config):
    """Add the pages made, and the pictures of `results/`."""
    made = {**methods.pages(), **api.pages(), **copies.pages()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    for picture in sorted((ROOT / "results").glob("*.png")):
        uri = f"results/{picture.name}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files
