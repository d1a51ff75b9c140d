"""The contract of imports: which room may look into which, and no circles."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room (a folder or a file of the package) and the rooms that it may import.
MAY_IMPORT = {
    "peftjax.core": (),
    "peftjax.errors": (),
    "peftjax.storage": ("errors",),
    "peftjax.nnx": ("core",),
    "peftjax.methods": ("core",),
    "peftjax.models": ("storage", "parallel", "data"),
    "peftjax.convert": ("core", "methods"),
    "peftjax.diffusion": ("data", "models", "storage"),
    "peftjax.quantised": ("core",),
    "peftjax.search": ("core", "methods"),
    "peftjax.starts": ("core", "methods", "quantised"),
    "peftjax.presets": ("core", "methods", "models"),
    "peftjax.parallel": (),
    "peftjax.data": ("errors", "storage"),
    "peftjax.hub": ("core", "storage", "methods", "models"),
    "peftjax.evaluation": ("data", "errors", "models"),
    "peftjax.training": ("core", "errors", "storage", "parallel"),
    "peftjax.testing": ("core", "hub", "nnx"),
}
# Whoever runs things knows no one who reports on them.
RUNNER = ("run", "finetune", "plan", "search", "selection", "tasks", "workdir")
REPORTER = "experiments.report"
RELATIVE = "by a relative path"


def modules(root: Path) -> dict[str, Path]:
    """Return the modules of the package, the experiments and their configurations."""
    found = {}
    for top in ("peftjax", "experiments", "configs"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[: -1 if parts[-1] == "__init__" else None])] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of `known` that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield RELATIVE
            continue
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name in known)


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def violations(root: Path) -> list[str]:
    """Return every import that the contract forbids, and the first circle."""
    known = modules(root)
    arrows = {name: set(imported(path, known)) for name, path in known.items()}
    found = []
    for name, targets in arrows.items():
        for target in sorted(targets - {name}):
            if not _may(name, target):
                found.append(f"{name} imports {target}")
    try:
        TopologicalSorter({n: t - {n} for n, t in arrows.items()}).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(error.args[1]))
    return found


def _may(name: str, target: str) -> bool:
    if target == RELATIVE:
        return False
    if name == "peftjax":
        return target.startswith("peftjax.")
    if name.startswith("peftjax."):
        own, other = room(name), room(target)
        allowed = {f"peftjax.{part}" for part in MAY_IMPORT.get(own, ())}
        return own == other or other in allowed
    if name.startswith("experiments."):
        runs = room(name) in {f"experiments.{part}" for part in RUNNER}
        return not (runs and target.startswith(REPORTER))
    return True  # configurations, and the face of the package


def test_imports_follow_the_contract():
    assert violations(ROOT) == []


def test_no_arrow_is_allowed_in_vain():
    known = modules(ROOT)
    arrows = {(room(n), room(t)) for n, p in known.items() for t in imported(p, known)}
    used = {name: {t for n, t in arrows if n == name} for name in MAY_IMPORT}
    for name, allowed in MAY_IMPORT.items():
        assert {f"peftjax.{part}" for part in allowed} == used[name] - {name}, name


def test_every_room_is_in_the_contract():
    rooms = {room(name) for name in modules(ROOT) if name.count(".")}
    assert {name for name in rooms if name.startswith("peftjax.")} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("peftjax/core/a.py", "from peftjax.methods import b", "core.a imports"),
        (
            "peftjax/hub/a.py",
            "def f():\n    import peftjax",
            "peftjax.hub.a imports peftjax",
        ),
        ("peftjax/models/a.py", "import experiments.run", "models.a imports"),
        ("peftjax/models/a.py", "from ..core import c", "by a relative path"),
        ("peftjax/__init__.py", "import experiments.run", "peftjax imports exp"),
        (
            "experiments/run.py",
            "from experiments.report import b",
            "experiments.run imports experiments.report",
        ),
        ("experiments/b.py", "import experiments.c", "circle: experiments."),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, text, expected):
    planted = {
        "peftjax/__init__.py": "",
        "peftjax/methods/b.py": "from peftjax.core import c",
        "peftjax/core/c.py": "",
        "experiments/run.py": "",
        "experiments/report/b.py": "",
        "experiments/c.py": "import experiments.b",
    }
    for name, content in (planted | {"experiments/b.py": ""}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert violations(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    (found,) = violations(tmp_path)
    assert expected in found
