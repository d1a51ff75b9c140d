"""What every result file says: configuration, versions, hardware; written whole."""

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
from ml_collections import ConfigDict

from peftjax.core.method import Method
from peftjax.hub.describe import describe
from peftjax.storage import replacing

# What names a run, or says where it lies, and does not change its outcome.
NOT_SETTINGS = ("name", "task", "method", "seed", "paths", "table", "grid")
# Of the paths, those that do: other weights.
WEIGHTS = ("model", "package", "start")
LIBRARIES = ("flax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "grain")


def plain(value: Any) -> Any:
    """Return a configuration as JSON has it; methods by name and settings."""
    if isinstance(value, Method):
        return describe(value)
    if isinstance(value, ConfigDict | dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def settings(config: ConfigDict) -> dict[str, Any]:
    """Return what decides a run's outcome, besides its task, method and seed."""
    own = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
    weights = {key: config.paths[key] for key in WEIGHTS if config.paths.get(key)}
    return {**own, "weights": weights} if weights else own


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
            "cores": len(os.sched_getaffinity(0)),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_json(path: Path, document: Any) -> None:
    """Write a document under a temporary name, then rename it."""
    with replacing(path) as new:
        new.write_text(json.dumps(document, indent=1) + "\n")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()
