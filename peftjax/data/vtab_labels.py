"""Labels that VTAB derives from what its data sets annotate.

Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task
Adaptation Benchmark", arXiv 1910.04867; bins and thresholds as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# KITTI's types 0, 1, 2 are car, van and truck.
_VEHICLES = 3
_NO_VEHICLE = 1000.0

_CLEVR_DISTANCE = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
_KITTI_DISTANCE = (-100.0, 8.0, 20.0, 999.0)


def binned(
    name: str, values: int, bins: int = 16
) -> Callable[[Mapping[str, Any]], int]:
    """Return an annotation of `values` values in `bins` bins of one width (dSprites).

    >>> label = binned("label_orientation", 40)
    >>> [label({"label_orientation": value}) for value in (0, 2, 3, 39)]
    [0, 0, 1, 15]
    """
    return lambda row: int(row[name]) * bins // values


def clevr_count(row: Mapping[str, Any]) -> int:
    """Return the number of objects less three; CLEVR scenes have 3 to 10.

    >>> clevr_count({"objects": {"size": [0, 1, 1, 0]}})
    1
    """
    return len(row["objects"]["size"]) - 3


def clevr_distance(row: Mapping[str, Any]) -> int:
    """Return the bin of the closest object's depth, 0 to 5.

    >>> clevr_distance({"objects": {"pixel_coords": [[0, 0, 11.0], [0, 0, 8.2]]}})
    1
    """
    depth = np.min(np.asarray(row["objects"]["pixel_coords"], np.float32)[:, 2])
    return _bin(depth, _CLEVR_DISTANCE)


def kitti_distance(row: Mapping[str, Any]) -> int:
    """Return the bin of the closest vehicle's depth in metres; 3 if there is none.

    >>> kitti_distance({"objects": {"type": [2], "location": [[1.5, 1, 9]]}})
    1
    """
    types = np.asarray(row["objects"]["type"]).reshape(-1)
    depth = np.asarray(row["objects"]["location"], np.float32).reshape(-1, 3)[:, 2]
    return _bin(np.min(depth[types < _VEHICLES], initial=_NO_VEHICLE), _KITTI_DISTANCE)


def _bin(value: Any, thresholds: tuple[float, ...]) -> int:
    """Return the index of the last threshold below `value`."""
    return int(np.sum(np.array(thresholds, np.float32) < value)) - 1
