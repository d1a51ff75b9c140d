"""The facts beside an adapter's arrays: what its JSON file may hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import msgspec

from peftjax.hub.describe import Described
from peftjax.hub.fingerprint import BaseLeaf, differences
from peftjax.hub.formats import FORMAT, migrate
from peftjax.hub.tensors import AdapterFileError, refuse
from peftjax.models.files import CheckpointError, read_json


class SiteFacts(msgspec.Struct, forbid_unknown_fields=True):
    """An adapted array: the kind of its layer, its shape and method."""

    kind: str
    shape: list[int]
    method: Described


class Facts(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the arrays belong to.

    Attributes:
        format: of the file.
        rules: patterns and methods, in order.
        sites: by path.
        base: the leaves of the frozen model, by path.
        versions: of the libraries that wrote the file.
        sha256: of the arrays' file.
    """

    format: int
    rules: list[tuple[str, Described]]
    sites: dict[str, SiteFacts]
    base: dict[str, BaseLeaf]
    versions: dict[str, str]
    sha256: str = ""


def read_facts(file: Path) -> Facts:
    """Return the facts in a file, earlier formats brought to the present one.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: the file is truncated, no JSON or of another layout.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the adapters' JSON, found none")
    try:
        found = migrate(read_json(file))
        if found.get("format") != FORMAT:
            raise AdapterFileError(
                f"{file}: expected format {FORMAT}, found {found.get('format')!r:.80}"
            )
        return msgspec.convert(found, Facts)
    except CheckpointError as error:
        raise AdapterFileError(str(error)) from error
    except msgspec.ValidationError as error:
        raise AdapterFileError(
            f"{file}: expected what `save` writes, found another layout: {error}; save "
            "the adapters again"
        ) from error


def write_facts(file: Path, facts: Facts) -> None:
    """Write facts as JSON."""
    file.write_text(json.dumps(msgspec.to_builtins(facts), indent=1) + "\n")


def check_facts(file: Path, expected: Facts, found: Facts) -> None:
    """Raise unless model, sites and rules are the same; versions may differ."""
    refuse(file, "another model", differences(expected.base, found.base))
    refuse(file, "other rules", _unequal(_rules(expected), _rules(found)))
    refuse(file, "other sites", _unequal(_sites(expected), _sites(found)))


def _rules(facts: Facts) -> list[str]:
    return [f"{pattern!r}: {_show(method)}" for pattern, method in facts.rules]


def _sites(facts: Facts) -> list[str]:
    return [
        f"{path!r}: {site.kind} {site.shape} {_show(site.method)}"
        for path, site in sorted(facts.sites.items())
    ]


def _show(method: Described) -> str:
    settings = ", ".join(
        f"{k}={json.loads(json.dumps(v))}" for k, v in method.settings.items()
    )
    return f"{method.name}({settings})"


def _unequal(expected: Sequence[str], found: Sequence[str]) -> list[str]:
    """Return one line per position at which the lines differ."""
    return [
        f"expected {here:.400}, found {there:.400}"
        for here, there in zip_longest(expected, found, fillvalue="nothing")
        if here != there
    ]
