"""One search: supernet, evolution, and one evaluation of what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import peftjax as pj
from experiments import costs, documents, finetune
from experiments.claims import LOCK, claim
from experiments.preemption import Stop, Stopped
from experiments.programs import ProgramCache
from experiments.records import circumstances, identity, plain
from experiments.run import Run
from experiments.search.pictures import archive_png, structure_png
from experiments.search.supernet import (
    changed,
    on_test,
    scores_of,
    space_of,
    supernet,
    trained,
)
from experiments.workdir import (
    ADAPTER,
    MERGED,
    RESULT,
    Busy,
    differences,
    finite,
)
from peftjax import storage
from peftjax.convert.glora import Subnet
from peftjax.hub import files
from peftjax.hub.tensors import save_tree
from peftjax.methods.glora_supernet import FORMS
from peftjax.parallel.distributed import any_of, led
from peftjax.search import Found, Space, draw, evolve
from peftjax.training.loop import NonFiniteLoss

SEARCH, SUPERNET, RETRAINED = "search.json", "supernet", "retrained"
REMEDY = "choose another --workdir"
ON_TEST = "**the structure was selected on the test split, as in the first release**"


def run(
    config: ConfigDict,
    workdir: Path,
    limit: int,
    *,
    retrain: bool = False,
    resume: bool = False,
    stop: Stop | None = None,
    mesh: Any = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a supernet, search it, and leave what was found in `workdir`.

    Args:
        config: of a run of GLoRA.
        workdir: the search's folder.
        limit: the most parameters of a structure, as `Space.count` counts.
        retrain: train the found structure from scratch before its evaluation.
        resume: continue the folder's search, or return its result.
        stop: asked after each step and generation; True stops.
        mesh: of all programs; by default all devices.
        **settings: of `evolve`, `population` for one.

    Raises:
        Busy: another process is at this search.
        DamagedFile: `search.json` is not whole.
        FileExistsError: the folder holds a search and `resume` is off, one of other
            settings, or other files.
        Preempted: it was asked to stop within the supernet's training.
        Stopped: it was asked to stop between generations.
        UnfitSettings: nothing to search, or no structure is within the limit.
    """
    config = supernet(config)
    chosen = {"limit": limit, "retrain": retrain, **settings}
    own = {**identity(config), **{f"search.{k}": v for k, v in chosen.items()}}
    with ExitStack() as stack:

        def ours() -> bool:
            _refuse_guests(workdir)  # before a lock file is written among them
            return stack.enter_context(claim(workdir)) is not None

        if not led(ours):
            raise Busy(f"{workdir}: another process is at this search")
        state = led(lambda: _begun(workdir, json.loads(json.dumps(own)), resume))
        if finished := led(lambda: _finished(workdir)):
            return finished
        one = Run(
            config,
            ProgramCache(mesh, update_frozen=draw),
            choose=not on_test(config),
            stop=stop,
        )

        def save(state: dict[str, Any]) -> None:
            led(lambda: _write(workdir, own, state))
            if stop is not None and any_of(stop()):
                raise Stopped(f"{workdir}: stopped between generations")

        result = {**_searched(one, workdir, chosen, state, save, stop), **_common(one)}
        led(lambda: storage.write_json(workdir / RESULT, result))
        return result


def _finished(workdir: Path) -> dict[str, Any] | None:
    if not (workdir / RESULT).exists():
        return None
    schema = documents.Searched | documents.Failed
    return documents.read(workdir / RESULT, schema, REMEDY)


def _searched(
    one: Run,
    workdir: Path,
    chosen: dict[str, Any],
    state: dict[str, Any] | None,
    save: Callable[[dict[str, Any]], None],
    stop: Stop | None,
) -> dict[str, Any]:
    """Train the supernet, search it, and return what was found and its score."""
    settings = dict(chosen)
    limit, retrain = settings.pop("limit"), settings.pop("retrain")
    space = space_of(one, limit, settings, state)
    try:
        adapters = trained(one, workdir / SUPERNET, stop)
    except NonFiniteLoss as error:
        return {"status": "failed", "error": error.what}
    score, key = scores_of(one, space, adapters), jax.random.key(one.config.seed)
    found = evolve(score, space, limit, key, **settings, state=state, save=save)
    led(lambda: _draw(one, space, found, workdir))
    subnet = pj.to_glora(one.peft, space.place(adapters, found.best.genes))
    tested = _tested(one, subnet, workdir, retrain, stop)
    return {**tested, **_facts(space, found, chosen)}


def _draw(one: Run, space: Space, found: Found, workdir: Path) -> None:
    pictures = {
        "archive.png": archive_png(found, one.outline.metric),
        "structure.png": structure_png(space, found.best),
    }
    for name, picture in pictures.items():
        with storage.replacing(workdir / name) as new:
            new.write_bytes(picture)


def _refuse_guests(workdir: Path) -> None:
    if workdir.exists() and not (workdir / SEARCH).exists():
        for path in workdir.iterdir():
            if path.name != LOCK:
                raise FileExistsError(
                    f"{path}: expected an absent or empty folder, or one of a search; "
                    f"{REMEDY}"
                )


def _begun(workdir: Path, own: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """Make the folder a search's, or return the state of its search."""
    file = workdir / SEARCH
    if not file.exists():
        _write(workdir, own, None)
        return None
    found = documents.read(file, documents.Search, REMEDY)
    if not resume:
        raise FileExistsError(f"{workdir}: holds a search; --resume continues it")
    if lines := differences(own, found["settings"]):
        raise FileExistsError(
            f"{file}: the folder's search is of other settings; give those, or another "
            "--workdir\n  " + "\n  ".join(lines)
        )
    return found["state"]


def _write(workdir: Path, own: dict[str, Any], state: dict[str, Any] | None) -> None:
    text = json.dumps({"settings": own, "state": state}, allow_nan=False)
    storage.write_text(workdir / SEARCH, text + "\n")


def _tested(
    one: Run, subnet: Subnet, workdir: Path, retrain: bool, stop: Stop | None
) -> dict[str, Any]:
    """Leave adapter and merged model of the found subnet; score it once on test."""
    rules, cache = tuple(subnet.rules.items()), ProgramCache(one.programs.mesh)
    config = changed(one.config, rules=rules, selection="last")
    if retrain:
        place = workdir / RETRAINED
        return finetune.run(config, place, resume=True, cache=cache, stop=stop)
    fixed, adapters = Run(config, cache, stop=stop), subnet.adapters

    def save() -> int:
        tensors, _ = files.save(workdir / ADAPTER, fixed.peft, adapters, fixed.base)
        try:
            save_tree(workdir / MERGED, fixed.peft.merge(fixed.base, adapters))
        except pj.NotMergeable as error:
            print(f"no merged weights: {error}", flush=True)
        return storage.size(tensors)

    size = led(save)
    return {
        "status": "finished",
        "scores": finite(fixed.score(adapters, fixed.data.test)),
        "adapter_bytes": size,
        "data": list(fixed.data.fingerprints),
        **costs.size(fixed.peft),
    }


def _common(one: Run) -> dict[str, Any]:
    """Return what every result says of its run."""
    names = ("name", "task", "method", "seed", "selection")
    note = f"{one.outline.note}; {ON_TEST}" if on_test(one.config) else one.outline.note
    return {
        **{key: one.config[key] for key in names},
        "metric": one.outline.metric,
        "note": note,
        "config": plain(one.config),
        **circumstances(),
    }


def _facts(space: Space, found: Found, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return what was found."""
    best = found.best
    paths = [site.path for site, _ in space.supernets]
    return {
        "search": {
            **chosen,
            "evaluated": len(found.archive),
            "parameters": best.parameters,
            "parameters_trained": int(space.trained(best.genes)),
            "selected_with": best.score,
            "random_structures": found.history[0]["mean"],
        },
        "structure": {
            path: dict(zip("ABCDE", (FORMS[gene] for gene in row)))
            for path, row in zip(paths, best.genes)
        },
    }
