"""What every result file says: configuration, versions, hardware."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import msgspec
from ml_collections import ConfigDict

from peftjax.core.method import Method
from peftjax.data.pipeline import ORDER
from peftjax.hub.describe import describe

# What names a run, or says where it lies, and does not change its outcome.
NOT_SETTINGS = (
    *("name", "task", "method", "seed", "paths", "table", "grid", "parallel"),
    *("look", "trackers"),
)
# Of the paths, those that do: other weights.
WEIGHTS = ("model", "package", "start", "upstream", "clip", "dino", "class_images")
NAMES = ("name", "task", "method", "seed")
LIBRARIES = ("flax", "grain", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")


def title(config: ConfigDict) -> str:
    """Return what a run is called where something is told of it."""
    return f"{config.task}, {config.method}, seed {config.seed}"


def plain(value: Any) -> Any:
    """Return a configuration as JSON has it; methods by name and settings."""
    if isinstance(value, Method):
        return msgspec.to_builtins(describe(value))
    if isinstance(value, ConfigDict | dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def settings(config: Any) -> dict[str, Any]:
    """Return what decides a run's outcome, besides its task, method and seed.

    Args:
        config: of the run, or as its result has it.
    """
    own = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
    paths = config["paths"]
    weights = {key: paths[key] for key in WEIGHTS if paths.get(key)}
    if "start_run" in own:
        weights.pop("start", None)  # the same run wherever the table lies
    return {**own, "weights": weights} if weights else own


def identity(config: Any) -> dict[str, Any]:
    """Return what tells a run from every other, by path, `optim.lr` for one.

    The order of its batches is among it. A run's own and that of the `config` in its
    result are equal.
    """
    names = {key: config[key] for key in NAMES}
    return _flat(plain({**names, "order": ORDER, **settings(config)}))


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested settings by their path."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (_flat(x, f"{prefix}.{key}" if prefix else key) for key, x in tree.items())
    return {key: value for part in parts for key, value in part.items()}


def digest(*parts: Any) -> str:
    """Return ten hexadecimal digits that change when any of the settings does."""
    text = json.dumps([plain(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def circumstances() -> dict[str, Any]:
    """Return versions, hardware and date, for a result file."""
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
        },
        "hardware": {
            "cpu": _cpu(),
            "cores": cores(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cores() -> int:
    """Return how many cores this process may use, where the system can say so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()
