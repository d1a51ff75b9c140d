"""Few shots of a set whose classes are known, by a ViT: GLoRA's protocol.

`paths.data` holds the set under its name, as `own_images` reads it, and `data` says how
many classes it has, so that nothing has to be there for a plan. `data.tested` names
further sets, of the same classes or of some of them (`peftjax.data.class_names`), on
which the run is scored at the end; where classes lack, only those that are there can be
answered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.tasks import images, own_images
from experiments.tasks.task import Data, Outline, reading
from peftjax import storage
from peftjax.data import class_names, folder, source
from peftjax.data.errors import DataError
from peftjax.training import task_metrics

base = images.base


def outline(config: Any) -> Outline:
    tested = config.data.get("tested", ())

    def examine(run: Any, adapters: Any, watch: Any = None) -> dict[str, float]:
        classes = _classes(config)
        return {name: elsewhere(run, adapters, name, classes) for name in tested}

    return replace(
        images.outline(config),
        examples=config.data.shots * config.model.num_classes,
        augment=own_images.augment_of(config),
        examine=examine if tested else None,
    )


def data(config: Any, choose: bool) -> Data:
    """Return what is trained, chosen and tested on.

    Raises:
        UnreadableData: as `own_images.data`.
        DataError: the set has another number of classes, or one to test on, whose
            classes are looked at before anything is trained, has others.
    """
    classes = _classes(config)
    if len(classes) != config.model.num_classes:
        raise DataError(
            f"{own_images.place(config)}: expected {config.model.num_classes} classes, "
            f"found {len(classes)}"
        )
    if not choose:
        for name in config.data.get("tested", ()):
            _elsewhere(config, name, classes)
    return own_images.data(config, choose)


def count(config: Any) -> int | None:
    try:
        return own_images.count(config)
    except source.MissingData:
        return None


def elsewhere(run: Any, adapters: Any, name: str, classes: tuple[str, ...]) -> float:
    """Return the accuracy on another set, among the classes that it has."""
    with reading(f"{run.config.name}, {name}"):
        found, places = _elsewhere(run.config, name, classes)
        split = {"image": found.images, "label": found.labels}
        logits = run.outputs(adapters, split)[:, places]
    return task_metrics.accuracy(found.labels, logits.argmax(-1))


def _classes(config: Any) -> tuple[str, ...]:
    return folder.read(own_images.place(config), config.data.size).classes


def _elsewhere(config: Any, name: str, classes: tuple[str, ...]) -> Any:
    place = storage.path(config.paths.data) / name
    found = folder.read(place, config.data.size, config.data.get("view", "resize"))
    return found, class_names.places(str(place), found.classes, classes)
