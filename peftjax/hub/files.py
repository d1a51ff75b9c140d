"""Our own adapter file: one safetensors file of arrays, one JSON beside it of facts.

`lora.safetensors` holds the arrays under `path:name` (`blocks_0/attn/qkv/kernel:a`).
`lora.json` holds what the arrays belong to: rules, sites, base model, versions, and the
SHA-256 of the arrays' file, which ties the two together. The facts have a file of their
own because people read and compare them; a safetensors header is no place for that.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from peftjax import storage
from peftjax.core.method import Method
from peftjax.hub.describe import describe, restore
from peftjax.hub.facts import Facts, SiteFacts, check_facts, read_facts, write_facts
from peftjax.hub.fingerprint import describe_base
from peftjax.hub.formats import FORMAT
from peftjax.hub.patterns import check_patterns
from peftjax.hub.tensors import (
    AdapterFileError,
    PathLike,
    check_arrays,
    expected_arrays,
    flat,
    read,
    write,
)
from peftjax.storage import replacing

Adapters = dict[str, dict[str, jax.Array]]


def save(
    path: PathLike, peft: Any, adapters: Mapping, variables: Any = None
) -> tuple[Path, Path]:
    """Write adapters as `<path>.safetensors` and `<path>.json`.

    Each is written whole; if the process dies between the two, `load` says that they do
    not belong together. A rule that `read_rules` would refuse is a warning.

    Args:
        path: the files' common name, with or without `.safetensors`.
        peft: what `adapt` returned.
        adapters: `{path: {name: array}}`, of the names and shapes of `peft.init`.
        variables: the frozen base; if given, its content is recorded too, and `load`
            tells another checkpoint of the same architecture.

    Returns:
        The two files.

    Raises:
        AdapterFileError: the adapters are not those of `peft`, or not finite.
        TypeError: a method has a setting that JSON cannot hold.
    """
    tensors_file, facts_file = pair(path)
    tensors = flat(adapters)
    check_arrays("adapters", flat(expected_arrays(peft)), tensors)
    try:
        check_patterns(pattern for pattern, _ in peft.rules)
    except ValueError as error:
        warnings.warn(f"{facts_file}: read_rules will refuse {error}", stacklevel=2)
    facts = _facts(peft, variables)
    with replacing(tensors_file) as new_tensors, replacing(facts_file) as new_facts:
        write(new_tensors, tensors)
        facts.sha256 = _sha256(new_tensors)
        write_facts(new_facts, facts)
    return tensors_file, facts_file


def load(path: PathLike, peft: Any, variables: Any = None) -> Adapters:
    """Read adapters that `save` wrote, for the same model and rules.

    Args:
        path: as in `save`.
        peft: what `adapt` returned.
        variables: the frozen base; if given, its content must be that of the file's.

    Returns:
        `{path: {name: array}}`, the arrays as saved, on the default device.

    Raises:
        FileNotFoundError: one of the two files is absent.
        AdapterFileError: a file is damaged; model, rules, names or shapes differ; a
            value is not finite. The message names path, expected and found.
    """
    tensors_file, facts_file = pair(path)
    facts = read_facts(facts_file)
    check_facts(facts_file, _facts(peft, variables), facts)
    expected = expected_arrays(peft)
    tensors = read(tensors_file, flat(expected))
    check_pair(tensors_file, facts_file, facts)
    return {
        path: {name: tensors[f"{path}:{name}"] for name in names}
        for path, names in expected.items()
    }


def read_module(
    path: PathLike, methods: Iterable[type[Method]] = ()
) -> tuple[dict[str, Method], Adapters]:
    """Return the rules and the adapters of a file, without a model.

    They are what `Composition.of` takes as one module.

    Args:
        path: as in `save`.
        methods: as for `read_rules`.

    Raises:
        FileNotFoundError: one of the two files is absent.
        AdapterFileError: a file is damaged, the two do not belong together, or a value
            is not finite.
    """
    tensors_file, facts_file = pair(path)
    facts, tensors = read_facts(facts_file), read(tensors_file)
    check_pair(tensors_file, facts_file, facts)
    adapters: Adapters = {}
    for key, value in tensors.items():
        site, colon, name = key.rpartition(":")
        known = not site or site in facts.sites
        if not (colon and known and name.isidentifier()):
            raise AdapterFileError(
                f"{tensors_file}: {key!r:.200}: expected arrays of the sites in "
                f"{facts_file.name}, found another"
            )
        adapters.setdefault(site, {})[name] = value
    return read_rules(path, methods), adapters


def read_rules(
    path: PathLike, methods: Iterable[type[Method]] = ()
) -> dict[str, Method]:
    """Return the rules of an adapter file, to `adapt` a model as it was.

    Args:
        path: as in `save`.
        methods: classes of the caller's own that the rules may name.

    Raises:
        FileNotFoundError: the file is absent.
        AdapterFileError: the file is damaged, names an unknown method, or has a pattern
            that may be slow to match; give `adapt` and `load` rules of your own then.
    """
    file = pair(path)[1]
    rules, methods = read_facts(file).rules, tuple(methods)
    try:
        check_patterns(pattern for pattern, _ in rules)
        return {pattern: restore(method, methods) for pattern, method in rules}
    except ValueError as error:
        raise AdapterFileError(f"{file}: {error}") from error


def pair(path: PathLike) -> tuple[Path, Path]:
    """Return the file of the arrays and that of the facts."""
    name = os.fspath(path).removesuffix(".safetensors")
    return storage.path(f"{name}.safetensors"), storage.path(f"{name}.json")


def check_pair(tensors_file: Path, facts_file: Path, facts: Facts) -> None:
    """Raise unless the arrays are those that the facts are about."""
    if (found := _sha256(tensors_file)) != facts.sha256:
        raise AdapterFileError(
            f"{tensors_file}: expected SHA-256 {facts.sha256:.80} as {facts_file.name} "
            f"says, found {found}; one of the two was changed, or a save was cut off "
            "between them: save the adapters again"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _facts(peft: Any, variables: Any) -> Facts:
    sites = {
        site.path: SiteFacts(site.kind, list(site.shape), describe(site.method))
        for site in peft.sites
    }
    return Facts(
        format=FORMAT,
        rules=[(pattern, describe(method)) for pattern, method in peft.rules],
        sites=sites,
        base=describe_base(peft, variables),
        versions={name: metadata.version(name) for name in ("jax", "flax", "numpy")},
    )
