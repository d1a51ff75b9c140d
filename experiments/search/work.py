"""One search: supernet, evolution, and one evaluation of what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import peftjax as pj
from experiments import costs, documents, finetune
from experiments.preemption import Stop, Stopped
from experiments.programs import ProgramCache
from experiments.records import circumstances, plain
from experiments.run import Run
from experiments.search.pictures import archive_png, structure_png
from experiments.search.supernet import (
    changed,
    on_test,
    scores_of,
    selected,
    space_of,
    supernet,
    trained,
)
from experiments.workdir import (
    ADAPTER,
    ARCHIVE,
    MERGED,
    RESULT,
    RETRAINED,
    SEARCH,
    STRUCTURE,
    SUPERNET,
    RunFolder,
    claimed,
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
from peftjax.training.progress import Tell, silent

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
    tell: Tell = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Train a supernet, search it, and leave what was found in `workdir`.

    Args:
        config: of a run of GLoRA.
        workdir: the search's folder; see `experiments.workdir`.
        limit: the most parameters of a structure, as `Space.count` counts.
        retrain: train the found structure from scratch before its evaluation.
        resume: continue the folder's search, or return its result.
        stop: asked after each step and generation; True stops.
        mesh: of all programs; by default all devices.
        tell: told what is being done; see `peftjax.training.progress`.
        **settings: of `evolve`, `population` for one.

    Raises:
        Busy: another process is at this search.
        DamagedFile: `search.json` is not whole.
        FileExistsError: the folder holds a search and `resume` is off, one of other
            settings, or files in the way that are no search's.
        Preempted: it was asked to stop within the supernet's training.
        Stopped: it was asked to stop between generations.
        UnfitSettings: nothing to search, or no structure is within the limit.
    """
    chosen = {"limit": limit, "retrain": retrain, **settings}
    config = changed(supernet(config), search=chosen)
    with claimed(workdir) as folder:
        finished = led(lambda: folder.held(config, resume))
        if finished is not None:
            return finished
        state = led(lambda: _state(workdir / SEARCH))
        tell("preparing data and weights")
        cache = ProgramCache(mesh, update_frozen=draw)
        one = Run(config, cache, choose=not on_test(config), stop=folder.asking(stop))
        space = space_of(one, limit, settings, state)
        selected(one)
        folder.begin(config)
        result = {**_searched(one, space, folder, state, stop, tell), **_common(one)}
        folder.own(RESULT)
        led(lambda: storage.write_json(workdir / RESULT, result))
        return result


def _state(file: Path) -> dict[str, Any] | None:
    there = file.exists()
    return documents.read(file, documents.Search, REMEDY) if there else None


def _searched(
    one: Run,
    space: Space,
    folder: RunFolder,
    state: dict[str, Any] | None,
    stop: Stop | None,
    tell: Tell,
) -> dict[str, Any]:
    """Train the supernet, search it, and return what was found and its score."""
    settings, place = one.config.search.to_dict(), folder.path
    limit, retrain = settings.pop("limit"), settings.pop("retrain")
    folder.own(SUPERNET)
    try:
        adapters = trained(one, place / SUPERNET, folder.asking(stop), tell)
    except NonFiniteLoss as error:
        return {"status": "failed", "error": error.what}

    tell(f"generation {len((state or {}).get('history', ()))}")

    def save(state: dict[str, Any]) -> None:
        folder.own(SEARCH)
        tell(f"generation {len(state['history'])}")
        text = json.dumps(state, allow_nan=False)
        led(lambda: storage.write_text(place / SEARCH, text + "\n"))
        if any_of(folder.asking(stop)()):
            raise Stopped(f"{place}: stopped between generations")

    score, key = scores_of(one, space, adapters), jax.random.key(one.config.seed)
    found = evolve(score, space, limit, key, **settings, state=state, save=save)
    folder.own(ARCHIVE, STRUCTURE)
    pictures = {
        ARCHIVE: archive_png(found, one.outline.metric),
        STRUCTURE: structure_png(space, found.best),
    }
    led(lambda: _draw(place, pictures))
    subnet = pj.to_glora(one.peft, space.place(adapters, found.best.genes))
    tested = (_retrained if retrain else _tested)(one, subnet, folder, stop, tell)
    return {**tested, **_facts(space, found, one.config.search.to_dict())}


def _draw(place: Path, pictures: dict[str, bytes]) -> None:
    for name, picture in pictures.items():
        with storage.replacing(place / name) as new:
            new.write_bytes(picture)


def _fixed(one: Run, subnet: Subnet) -> ConfigDict:
    return changed(one.config, rules=tuple(subnet.rules.items()), selection="last")


def _retrained(
    one: Run, subnet: Subnet, folder: RunFolder, stop: Stop | None, tell: Tell
) -> dict[str, Any]:
    """Train the found subnet from scratch, in a folder of its own, and test it."""
    folder.own(RETRAINED)
    cache, place = ProgramCache(one.programs.mesh), folder.path / RETRAINED
    stop, config = folder.asking(stop), _fixed(one, subnet)
    options = {"resume": True, "cache": cache, "stop": stop, "tell": tell}
    return finetune.run(config, place, **options)


def _tested(
    one: Run, subnet: Subnet, folder: RunFolder, stop: Stop | None, tell: Tell
) -> dict[str, Any]:
    """Leave adapter and merged model of the found subnet; score it once on test."""
    tell("testing")
    config, cache = _fixed(one, subnet), ProgramCache(one.programs.mesh)
    fixed, adapters = Run(config, cache, stop=stop), subnet.adapters
    place = folder.path
    folder.own(f"{ADAPTER}.json", f"{ADAPTER}.safetensors")
    size = led(lambda: _saved(fixed, place / ADAPTER, adapters))
    try:
        merged = fixed.peft.merge(fixed.base, adapters)
    except pj.NotMergeable as error:
        print(f"no merged weights: {error}", flush=True)
    else:
        folder.own(MERGED)
        led(lambda: str(save_tree(place / MERGED, merged)))
    scores = fixed.score(adapters, fixed.data.test) | fixed.examined(adapters)
    return {
        "status": "finished",
        "scores": finite(scores),
        "adapter_bytes": size,
        "data": list(fixed.data.fingerprints),
        **costs.size(fixed.peft),
    }


def _saved(fixed: Run, place: Path, adapters: Any) -> int:
    """Leave the adapter's files; return the bytes of its arrays."""
    tensors, _ = files.save(place, fixed.peft, adapters, fixed.base)
    return storage.size(tensors)


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
