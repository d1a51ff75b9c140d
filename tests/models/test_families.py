"""The records of the families: complete, apart, and the only way to a family."""

import ast
import re
from pathlib import Path

import jax
import pytest

import peftjax
from peftjax.models import (
    FAMILIES,
    ClipClassifier,
    ClipVisionConfig,
    Llama,
    LlamaConfig,
    family_of,
    load,
    save,
)
from peftjax.models.leaves import initial
from tests.helpers.model_cases import MODELS

PACKAGE = Path(peftjax.__file__).parent
# DiT is trained here and has no files of others to be recognised.
FOLDERS = {family.module.__module__.split(".")[2] for family in FAMILIES} | {"dit"}
# The list of families and the public names; a family may build on another.
DOORS = {"models/families.py", "models/__init__.py"}


def imported(file):
    """Yield the modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_file_of_the_package_imports_a_family_but_by_its_record():
    family = re.compile(rf"peftjax\.models\.({'|'.join(FOLDERS)})(\..*)?")
    files = {
        file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")
    }
    found = {
        name
        for name, file in files.items()
        if not re.match(rf"models/({'|'.join(FOLDERS)})/", name)
        if any(family.fullmatch(module) for module in imported(file))
    }
    assert found == DOORS


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.called[0])
def test_patterns_and_names_are_of_one_family(family):
    kinds = [kind.name for family in FAMILIES for kind in family.checkpoints]
    called = [name for family in FAMILIES for name in family.called]
    assert len({*kinds}) == len(kinds) and len({*called}) == len(called)
    assert "hf" in family.names
    for kind in family.checkpoints:
        assert kind.layout in family.names
        # A head's tensors are given up for a new one.
        assert re.fullmatch(kind.heads, kind.head[0]) or not family.heads.attribute


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir()))
def test_a_record_fits_the_parameters_of_its_models(name):
    model, _ = load(MODELS / name, head="none")
    family = family_of(model)
    assert family.head(model) is None
    key = jax.random.key(0)
    paths = jax.eval_shape(lambda key: initial(model, key, 3), key).keys()
    assert paths <= family.sources(model).keys()
    places = family.placements
    for part, inner in places.parts.items():
        pattern = rf"{places.stack}_\d+/({inner})/kernel"
        layers = [path for path in paths if re.fullmatch(pattern, path)]
        ungated = part == "gate" and not getattr(model.config, "gated", True)
        assert bool(layers) != ungated, part
    assert places.patches is None or f"{places.patches}/kernel" in paths


def test_heads_are_set_and_read_back():
    model = Llama(LlamaConfig(num_hidden_layers=1), head=None)
    family = family_of(model)
    for head in (3, "regression", "lm"):
        assert family.head(family.with_head(model, head)) == head
    assert family.with_head(model, "none") == model


def test_a_model_of_no_family_is_named(tmp_path):
    model = ClipClassifier(ClipVisionConfig(), 4, 3)
    with pytest.raises(ValueError, match="ClipClassifier has no equal there"):
        save(tmp_path / "model", model, {"params": {}})
    assert not (tmp_path / "model").exists()
