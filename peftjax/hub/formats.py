"""Facts of adapter files of earlier formats, brought to the present one."""

from __future__ import annotations

from typing import Any

FORMAT = 2

# Format 1: settings that have another name now, and values that are spelled otherwise.
_RENAMED = {
    "Composition": {"granularity": "share"},
    "HRA": {"init": "start", "penalty": "penalty_weight"},
    "Hydra": {"init": "start"},
    "OFT": {"form": "neumann"},
}
_RESPELLED = {
    ("Composition", "granularity"): {"layer": False, "global": True},
    ("HRA", "orthogonal"): {"none": False, "gram_schmidt": True},
    ("OFT", "form"): {"cayley": False, "neumann": True},
}


def migrate(facts: Any) -> Any:
    """Return facts as the present format has them; anything unknown is left as it is.

    >>> method = {"name": "Hydra", "settings": {"rank": 2, "init": "normal"}}
    >>> migrate({"format": 1, "rules": [["kernel", method]]})["rules"][0][1]
    {'name': 'Hydra', 'settings': {'rank': 2, 'start': 'normal'}}
    """
    found = facts.get("format") if isinstance(facts, dict) else None
    if type(found) is not int or found != 1:
        return facts
    return {**_renamed(facts), "format": FORMAT}


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _renamed(item) for key, item in value.items()}
    name, settings = value.get("name"), value.get("settings")
    if isinstance(name, str) and isinstance(settings, dict):
        value["settings"] = dict(_setting(name, *item) for item in settings.items())
    return value


def _setting(name: str, key: str, value: Any) -> tuple[str, Any]:
    spelled = _RESPELLED.get((name, key), {})
    new = spelled.get(value, value) if isinstance(value, str) else value
    return _RENAMED.get(name, {}).get(key, key), new
