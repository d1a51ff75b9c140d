"""The card of an adapter: the `README.md` of its repository, made of its facts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from peftjax.hub.facts import Facts
from peftjax.storage.repository import is_name

_LOAD = """```python
path = peftjax.hub.pull({name})
rules = peftjax.hub.read_rules(path)
peft = peftjax.adapt(model.apply, variables, x, rules=rules)
adapters = peftjax.hub.load(path, peft, variables)
```
"""
_LOAD_TORCH = """```python
path = peftjax.hub.pull({name})
rules, adapters = peftjax.hub.load_torch(path, model, variables)
```
"""


def card(
    name: str,
    facts: Facts | Mapping[str, Any],
    *,
    base: str = "",
    data: Sequence[Mapping[str, Any]] = (),
    scores: Mapping[str, float | None] | None = None,
    command: str = "",
) -> str:
    """Return the card of an adapter, in Markdown.

    Args:
        name: of the repository.
        facts: of the adapter's JSON, or the torch library's configuration.
        base: the base model, by preference as `OWNER/NAME`.
        data: fingerprints of the examples, as a run's result has them.
        scores: numbers by metric.
        command: that made the adapter.
    """
    ours = isinstance(facts, Facts)
    head = {"library_name": "peftjax" if ours else "peft", "tags": ["adapter"]}
    head |= {"base_model": base} if is_name(base) else {}
    rows = [*(_ours(facts, base) if isinstance(facts, Facts) else _torch(facts, base))]
    rows += [("data", _code(_told(one))) for one in data]
    rows += [(_plain(key), _number(x)) for key, x in (scores or {}).items()]
    # JSON is YAML, and quotes whatever a value holds.
    front = "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())
    table = "".join(f"| {key} | {value} |\n" for key, value in rows)
    text = f"---\n{front}---\n\n# {name}\n\nAn adapter, made with peftjax.\n\n"
    text += f"| | |\n|---|---|\n{table}\n"
    text += f"Made by\n\n{_fenced(command)}\n" if command else ""
    load = _LOAD if ours else _LOAD_TORCH
    return text + "Load it by\n\n" + load.format(name=json.dumps(name))


def _ours(facts: Facts, base: str) -> Iterable[tuple[str, str]]:
    for pattern, method in facts.rules:
        settings = ", ".join(f"{k}={json.dumps(v)}" for k, v in method.settings.items())
        yield "method", f"{_code(f'{method.name}({settings})')} on {_code(pattern)}"
    leaves = json.dumps(msgspec.to_builtins(facts.base), sort_keys=True)
    told = f"{len(facts.base)} parameters, fingerprint "
    told += _code(hashlib.sha256(leaves.encode()).hexdigest()[:16])
    yield "base", f"{_code(base)}, {told}" if base else told


def _torch(config: Mapping[str, Any], base: str) -> Iterable[tuple[str, str]]:
    yield "method", _code(f"{config.get('peft_type')}(r={config.get('r')})")
    yield "base", _code(base or f"{config.get('base_model_name_or_path')}")


def _told(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in found.items())


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _plain(text: str) -> str:
    return re.sub(r"[\s|`<>\[\]]+", " ", text)


def _code(text: str) -> str:
    text = " ".join(text.replace("`", "'").split()).replace("|", "\\|")
    return f"`{text}`"


def _fenced(text: str) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text.strip()}\n{fence}\n"
