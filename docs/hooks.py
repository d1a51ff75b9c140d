"""What `mkdocs build` asks of this folder: pages that are made, not written."""

import sys
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs import api, copies, methods, notebooks  # noqa: E402

MADE = {"methods/": methods, "api/": api, "notebooks/": notebooks}


def on_config(config):
    """Put the pages made into the navigation, where it names their folder."""
    for entry in config.nav:
        for title, target in entry.items():
            if isinstance(target, str) and target in MADE:
                entry[title] = MADE[target].nav()
    return config


@event_priority(100)  # before the plugin that takes notebooks for pages
def on_files(files, config):
    """Add the pages made, the notebooks, and the pictures of `results/`."""
    made = {**methods.pages(), **api.pages(), **copies.pages()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    for path in [*notebooks.files(), *sorted((ROOT / "results").glob("*.png"))]:
        uri, urls = path.relative_to(ROOT).as_posix(), config.use_directory_urls
        files.append(File(uri, str(ROOT), config.site_dir, urls))
    return files
