"""The pages of the API, one a room: every public name, by its docstring."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import peftjax as pj

# What is no room of the face: the transform, and what the rooms share.
INNER = {"core", "errors", "methods", "nnx", "storage"}
BLOCK = "::: {name}\n    options:\n      heading_level: {level}\n"


def rooms() -> list[str]:
    """Return the rooms whose names are public; those of `methods` are the face's."""
    return [one.name for one in iter_modules(pj.__path__) if one.name not in INNER]


def public() -> dict[str, list[str]]:
    """Return the public names of each module, dotted; of a room or of its modules."""
    found = {"peftjax": [f"peftjax.{name}" for name in pj.__all__]}
    for room in rooms():
        module = import_module(f"peftjax.{room}")
        for part in [module] if hasattr(module, "__all__") else modules(module):
            names = getattr(part, "__all__", None) or own(part)
            found[part.__name__] = [f"{part.__name__}.{name}" for name in names]
    return found


def modules(room: Any) -> list[Any]:
    """Return a room that is one file, or the files of a room without a face."""
    inside = [info.name for info in iter_modules(getattr(room, "__path__", []))]
    return [import_module(f"{room.__name__}.{name}") for name in inside] or [room]


def own(module: Any) -> list[str]:
    """Return the public functions and classes that a file defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]


def nav() -> list[dict[str, str]]:
    """Return titles and addresses, as mkdocs takes them."""
    return [{name: f"api/{name}.md"} for name in ("peftjax", *rooms())]


def pages() -> dict[str, str]:
    """Return the pages by their address."""
    lists = public()
    return {f"api/{name}.md": _page(name, lists) for name in ("peftjax", *rooms())}


def _page(room: str, lists: dict[str, list[str]]) -> str:
    full = room if room == "peftjax" else f"peftjax.{room}"
    title = f"`{full}`" if room != "peftjax" else "`import peftjax as pj`"
    text = [f"# {title}\n\n{_said(full)}\n"]
    for module, names in lists.items():
        if module == full:
            text += [BLOCK.format(name=name, level=2) for name in names]
        elif module.startswith(f"{full}.") and full != "peftjax":
            text += [f"## `{module}`\n\n{_said(module)}\n"]
            text += [BLOCK.format(name=name, level=3) for name in names]
    return "\n".join(text)


def _said(module: str) -> str:
    """Return what a module says of itself."""
    return (import_module(module).__doc__ or "").strip()
