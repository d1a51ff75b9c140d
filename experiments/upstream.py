"""Modules of other tasks, which a run starts from: `peftjax.methods.composition`.

A module is the adapter that a run of LoRA left, `paths.upstream/NAME`, for each NAME of
`upstream`. None of them may have seen the data of the task that they are composed for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import peftjax as pj
from experiments.workdir import ADAPTER, RESULT, read_result
from peftjax import hub, storage
from peftjax.hub.facts import read_facts
from peftjax.hub.fingerprint import describe_base, differences


class UnfitModule(ValueError):
    """A module cannot be composed for the task; the message says which and why."""


def modules(
    config: ConfigDict, peft: pj.Peft, base: Any, fingerprints: Sequence[Any]
) -> tuple[list[Any], dict[str, str]]:
    """Return the modules, as `Composition.of` takes them, and the SHA-256 of each.

    Args:
        config: of the run, with `upstream` and `paths.upstream`.
        peft: of the run.
        base: its frozen variables, concrete.
        fingerprints: of the run's data.

    Raises:
        FileNotFoundError: there is no such run.
        UnfitModule: a run failed or has seen the task's data, or its module is of
            another base.
        AdapterFileError: the files of a module are damaged.
    """
    where = f"{config.name}, {config.task}"
    expected, found, sums = describe_base(peft, base), [], {}
    trained = {site.path for site in peft.sites if isinstance(site.method, pj.Full)}
    for name in config.upstream:
        place = storage.path(config.paths.upstream) / name
        _refuse(where, name, place, fingerprints)
        facts = read_facts(place / f"{ADAPTER}.json")
        frozen = [
            {path: x for path, x in leaves.items() if path not in trained}
            for leaves in (expected, facts.base)
        ]
        if lines := differences(*frozen):
            raise UnfitModule(f"{place / ADAPTER}: of another base: {lines[0]}")
        found.append(hub.read_module(place / ADAPTER))
        sums[name] = facts.sha256
    return found, sums


def composed(
    config: ConfigDict, peft: pj.Peft, base: Any, modules: Sequence[Any]
) -> Any:
    """Return the adapters of a fresh composition.

    Arrays of the modules are frozen; what else the rules train, a head, is drawn by the
    run's seed.

    Args:
        config: of the run.
        peft: of the run.
        base: its frozen variables, concrete.
        modules: as `Composition.of` takes them.

    Raises:
        UnfitModule: they differ in layers, or are not of the rules' layers and rank.
    """
    where = f"{config.name}, {config.task}"
    trained = {site.path for site in peft.sites if isinstance(site.method, pj.Full)}
    try:
        found = pj.Composition.of(modules, *_weights(peft)).adapters
    except ValueError as error:
        raise UnfitModule(f"{where}: {', '.join(config.upstream)}: {error}") from error
    own = peft.init(jax.random.key(config.seed), base)
    _compare(where, own, found, trained)
    return {**own, **found}


def mixture(peft: pj.Peft, adapters: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the learned weights of each composed layer; `""` where all share them."""
    found: dict[str, list[float]] = {}
    for site in peft.sites:
        method = site.method
        if isinstance(method, pj.Composition) and method.weights == "learned":
            path = "" if method.share else site.path
            weights = np.asarray(method.mixture(adapters[path]), np.float64)
            found[path] = weights.tolist()
    return found


def _refuse(where: str, name: str, place: Any, fingerprints: Sequence[Any]) -> None:
    """Raise unless a run is there, has ended well and has seen none of the data."""
    if not (place / RESULT).is_file():
        raise FileNotFoundError(
            f"{where}: composes the module of {name}, and {place} holds no run: give "
            f"--config.paths.upstream, or run experiments.finetune with task={name},"
            f"method=lora and --workdir {place}"
        )
    result = read_result(place / RESULT)
    if result["status"] == "failed":
        raise UnfitModule(f"{where}: composes {place}, which failed")
    seen = {one.get("sha256"): one for one in result.get("data", ())}
    for one in fingerprints:
        if other := seen.get(one["sha256"]):
            raise UnfitModule(
                f"{where}: {place} has seen its {one['split']} split (as "
                f"{other.get('dataset')}, {other.get('split')}): expected modules of "
                "other data"
            )


def _weights(peft: pj.Peft) -> tuple[Any, ...]:
    methods = {
        site.method for site in peft.sites if isinstance(site.method, pj.Composition)
    }
    (one,) = {(x.weights, x.share, x.detach_denominator) for x in methods}
    return one


def _compare(where: str, own: Any, found: Any, trained: set[str]) -> None:
    """Raise unless the modules have the layers and the rank of the rules."""
    layers = own.keys() - trained
    if odd := sorted(layers ^ found.keys()):
        raise UnfitModule(
            f"{where}: {odd[0]!r}: adapted by "
            f"{'the rules' if odd[0] in layers else 'the modules'} alone"
        )
    for path in sorted(layers):
        shapes = [{k: x.shape for k, x in p[path].items()} for p in (own, found)]
        if shapes[0] != shapes[1]:
            raise UnfitModule(
                f"{where}: {path}: expected modules of {shapes[0]}, found {shapes[1]}"
            )
