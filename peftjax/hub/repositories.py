"""Adapters in repositories of the Hugging Face Hub: put up with a card, and fetched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax import storage
from peftjax.hub.card import card
from peftjax.hub.facts import read_facts
from peftjax.hub.files import check_pair, pair
from peftjax.hub.tensors import AdapterFileError, PathLike, read
from peftjax.hub.torch.config import CONFIG
from peftjax.models.files import CheckpointError, read_json
from peftjax.storage import repository

OURS = ("adapter.json", "adapter.safetensors")
TORCH = (CONFIG, "adapter_model.safetensors")
CARD = "README.md"


def push(
    name: str,
    path: PathLike,
    *,
    base: str = "",
    data: Sequence[Mapping[str, Any]] = (),
    scores: Mapping[str, float | None] | None = None,
    command: str = "",
    private: bool = False,
) -> str:
    """Upload an adapter with a card as one commit; return the repository's address.

    Method and fingerprint of the base are read from the adapter's own files. Of a run
    of `experiments` its `result.json` has `data` and `scores`. The files are checked
    first: what `pull` and `load` would refuse is not uploaded.

    Args:
        name: of the repository, `OWNER/NAME`; it is made if it is absent.
        path: of `save`, or the folder of `save_torch`.
        base: the base model, by preference as `OWNER/NAME`.
        data: fingerprints of the examples, as `peftjax.data.fingerprint` makes them.
        scores: numbers by metric.
        command: that made the adapter.
        private: whether a new repository is private.

    Raises:
        FileNotFoundError: there is no such adapter.
        AdapterFileError: a file of it is damaged, or the two do not belong together.
        RepositoryError: the Hub cannot be reached or refuses; an `OSError`.
        ValueError: the name is no name of a repository.
    """
    if not repository.is_name(name):
        raise ValueError(
            f"{name!r:.200}: expected the name of a repository, OWNER/NAME"
        )
    facts, files = _checked(storage.path(path))
    given = {"base": base, "data": data, "scores": scores, "command": command}
    with tempfile.TemporaryDirectory() as made:
        for new, file in files.items():
            shutil.copyfile(storage.local(file), Path(made, new))
        Path(made, CARD).write_text(card(name, facts, **given), "utf-8")
        message = "Upload an adapter of peftjax"
        return repository.put(name, Path(made), message, private=private)


def pull(name: str, revision: str | None = None) -> Path:
    """Fetch the adapter of a repository; return its path for `load` or `load_torch`.

    Its two files are fetched and nothing else. Where there is no network, the Hugging
    Face cache is looked into.

    Args:
        name: of the repository, `OWNER/NAME`.
        revision: a branch, a tag or a commit.

    Raises:
        AdapterFileError: there is no adapter in it.
        RepositoryError: the Hub cannot be reached, or has no such repository.
        ValueError: the name is no name of a repository.
    """
    if not repository.is_name(name):
        raise ValueError(
            f"{name!r:.200}: expected the name of a repository, OWNER/NAME"
        )

    def choose(files: Sequence[str]) -> Sequence[str]:
        for both in (OURS, TORCH):
            if set(both) <= set(files):
                return both
        raise AdapterFileError(
            f"{name}: expected {' and '.join(OURS)}, or {' and '.join(TORCH)}, found "
            f"{', '.join(sorted(files)) or 'nothing':.300}"
        )

    folder = repository.fetch(name, choose, revision)
    return folder / "adapter" if (folder / OURS[0]).is_file() else folder


def _checked(path: Path) -> tuple[Any, dict[str, Path]]:
    """Return what the card tells of, and the files by their names in the repository."""
    config = path / CONFIG
    if path.is_dir() and config.is_file():
        try:
            facts = read_json(config)
        except CheckpointError as error:
            raise AdapterFileError(str(error)) from error
        tensors = path / TORCH[1]
        read(tensors)
        return facts, dict(zip(TORCH, (config, tensors)))
    tensors, described = pair(path)
    facts = read_facts(described)
    check_pair(tensors, described, facts)
    read(tensors)
    return facts, dict(zip(OURS, (described, tensors)))
