"""Which files of a repository are a model: weights of a kind, JSON, tokenizers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peftjax import storage
from peftjax.models.files import INDICES, PICKLES, STEMS, WHOLE, CheckpointError
from peftjax.storage import repository

FETCHED = (".safetensors", ".gguf")
# Beside JSON, what tokenizers are read from.
TOKENIZERS = (
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "vocab.txt",
)
_SHARD = re.compile(rf"({'|'.join(STEMS)})-\d+-of-\d+\.safetensors")


def resolve(path_or_name: Any, revision: str | None, inside: str) -> Path:
    """Return the path of a model: the one given, or that of a fetched repository.

    Args:
        path_or_name: as `load` takes it. What exists is a path.
        revision: of a repository.
        inside: a folder or a weight file of a repository.

    Raises:
        CheckpointError: there is neither, or it could be both.
    """
    path, name = storage.path(path_or_name).expanduser(), str(path_or_name)
    asked, inside = revision is not None or bool(inside), inside.strip("/")
    if storage.exists(path):
        if asked:
            raise CheckpointError(
                f"{path}: is a path here, and revision= and inside= are of a "
                "repository; leave them out, or load from another working directory"
            )
        return path
    if not repository.is_name(name) or (not asked and name.endswith(FETCHED)):
        what = "a repository" if asked else "no such file or folder, and a repository"
        raise CheckpointError(f"{path}: {what} of the Hugging Face Hub is OWNER/NAME")
    if not asked and path.parent.is_dir():
        raise CheckpointError(
            f"{path}: no such file or folder, but {path.parent} is a folder here; if a "
            "repository of the Hugging Face Hub is meant, say so by revision='main'"
        )
    try:
        choose = partial(chosen, name, inside)
        return repository.fetch(name, choose, revision) / inside
    except repository.RepositoryError as error:
        raise CheckpointError(f"no such file or folder here; {error}") from error


def chosen(name: str, inside: str, files: Sequence[str]) -> list[str]:
    """Return the files of a model, from the list of a repository.

    Weights of one kind, JSON and tokenizers, all of one folder. Pickles and code are
    never among them, nor any file above or below that folder.

    Raises:
        CheckpointError: there are none, only pickles, or several to choose from.

    >>> chosen("a/b", "", ["x.py", "config.json", "model.safetensors", "q.gguf"])
    ['config.json', 'model.safetensors']
    """
    folder, file = inside, ""
    if folder in files:
        folder, _, file = folder.rpartition("/")
    prefix = f"{folder}/" if folder else ""
    beside = {x.removeprefix(prefix) for x in files if x.startswith(prefix)}
    beside = {x for x in beside if x and "/" not in x and "\\" not in x}
    weights = {file} if file else _weights(f"{name}/{folder}".rstrip("/"), beside)
    if file and not file.endswith(FETCHED):
        raise CheckpointError(f"{name}/{inside}: expected a {' or '.join(FETCHED)}")
    others = {x for x in beside if x.endswith(".json") and x not in INDICES}
    others |= beside.intersection(TOKENIZERS)
    return sorted(prefix + x for x in weights | others)


def _weights(where: str, names: set[str]) -> set[str]:
    """Return the weight files of a folder, as `find_weights` would choose."""
    for whole, index, stem in zip(WHOLE, INDICES, STEMS):
        if whole in names:
            return {whole}
        if index in names:
            shards = {x for x in names if (m := _SHARD.fullmatch(x)) and m[1] == stem}
            return {index, *shards}
    for suffix in FETCHED:
        found = sorted(x for x in names if x.endswith(suffix))
        if len(found) > 1:
            raise CheckpointError(
                f"{where}: expected one weight file, found {', '.join(found):.600}; "
                f"choose one by inside='{found[0]}'"
            )
        if found:
            return set(found)
    if pickles := sorted(x for x in names if x.endswith(PICKLES)):
        raise CheckpointError(
            f"{where}: has weights as {pickles[0]} only: refused, and not fetched. "
            "Files of this kind may run code when they are loaded; expected safetensors"
        )
    raise CheckpointError(
        f"{where}: expected {WHOLE[0]}, {INDICES[0]} or a .gguf file, found "
        f"{', '.join(sorted(names)) or 'nothing':.300}; inside= names a folder of the "
        "repository"
    )
