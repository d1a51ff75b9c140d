"""Repositories of the Hugging Face Hub: files of them fetched, a folder put up.

What is fetched are files that the caller chose from the repository's list, by exact
names. Nothing of a repository is run.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from peftjax.errors import brief

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
Choose = Callable[[Sequence[str]], Iterable[str]]


class RepositoryError(OSError):
    """A repository cannot be reached, is absent, or has not what is asked for."""


def is_name(text: str) -> bool:
    """Return whether a text could name a repository.

    >>> is_name("owner/name"), is_name("name"), is_name("./folder/name")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def fetch(name: str, choose: Choose, revision: str | None = None) -> Path:
    """Return the folder with the chosen files of a repository.

    It lies in the Hugging Face cache, and what is there is not fetched again. Where the
    Hub cannot be reached, it is what the cache has of that revision.

    Args:
        name: `OWNER/NAME`.
        choose: names of all files, from the repository's root, to those that are
            wanted; it may raise.
        revision: a branch, a tag or a commit; the main branch if absent.

    Raises:
        RepositoryError: there is no such repository or revision, or neither a way to
            it nor a copy.
    """
    api = _client(name)
    try:
        listed = api.model_info(name, revision=revision).siblings or ()
    except Exception as error:  # of the transport, whose kind depends on the version
        if (lack := _lacking(error)) is not None:
            raise RepositoryError(f"{name}{_at(revision)}: {lack}") from error
        return _kept(api, name, choose, revision, error)
    wanted = [glob.escape(file) for file in choose([x.rfilename for x in listed])]
    try:
        found = api.snapshot_download(name, revision=revision, allow_patterns=wanted)
    except Exception as error:
        raise RepositoryError(
            f"{name}{_at(revision)}: not fetched ({brief(error)}); run it again, and "
            "what is there already is kept"
        ) from error
    return Path(found)


def put(name: str, folder: Path, message: str, *, private: bool = False) -> str:
    """Make a folder the newest commit of a repository; return its address.

    The repository is made if it is absent; its other files stay.

    Raises:
        RepositoryError: the Hub cannot be reached or refuses.
    """
    api = _client(name)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:
        raise RepositoryError(
            f"{name}: not uploaded ({brief(error)}). It needs a network and the rights "
            f"of its owner: hf auth login; or elsewhere: hf upload {name} FOLDER"
        ) from error
    return str(address)


def _client(name: str) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise RepositoryError(
            f"{name}: a repository needs huggingface_hub: pip install 'peftjax[hub]'"
        ) from error
    return HfApi(library_name="peftjax")


def _lacking(error: Exception) -> str | None:
    """Return what the Hub says that there is not; None if it said nothing."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return f"no name of a repository ({error})"
    if isinstance(error, errors.GatedRepoError):
        return "its owner has to grant access first, on its page; then hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or one that is private: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    return None


def _kept(
    api: Any, name: str, choose: Choose, revision: str | None, reason: Exception
) -> Path:
    """Return what the cache has, if it has what is wanted."""
    try:
        # No file in particular: what is wanted is chosen from what is there.
        found = api.snapshot_download(
            name, revision=revision, allow_patterns=[], local_files_only=True
        )
    except (OSError, ValueError) as error:
        at = f" --revision {revision}" if revision else ""
        raise RepositoryError(
            f"{name}{_at(revision)}: the Hugging Face Hub cannot be reached "
            f"({brief(reason)}), and its cache here has no copy. Where there is a "
            f"network: hf download {name}{at}; then copy the cache, or the folder and "
            "give its path"
        ) from error
    folder = Path(found)
    files = [x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file()]
    for _ in choose(sorted(files)):
        pass  # raises where something is lacking
    return folder


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""
