"""What a method needs beside its own file is there, or is missed by name."""

import dataclasses
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

import peftjax as pj
from peftjax import methods
from peftjax.hub.torch.codecs import CODECS
from peftjax.presets import rules

ROOT = Path(__file__).parents[2]
VOCABULARY = (ROOT / "docs" / "vocabulary.md").read_text("utf-8")


def file_of_tests(method):
    """Return the path of the tests against the method's references."""
    return f"tests/methods/test_{method.__module__.rpartition('.')[2]}.py"


def checked(method):
    """Return the settings that `check_method` is to see."""
    name = file_of_tests(method).removesuffix(".py").replace("/", ".")
    return getattr(import_module(name), "CHECKED", ())


def vocabulary():
    """Return the pairs of method and setting in the table, departures apart."""
    pairs = {False: set(), True: set()}
    rows = re.findall(r"^\| (.*`\*?) \| .* \| (.*) \|$", VOCABULARY, re.M)
    for names, owners in rows:
        for name in re.findall(r"`(\w+)`", names.replace("*", "")):
            pairs["*" in names].update((own, name) for own in owners.split(", "))
    return pairs


VOCABULARY_PAIRS = vocabulary()


def departures(method):
    """Return the settings under "Departures" in the docstring."""
    _, _, section = (method.__doc__ or "").partition("Departures:\n")
    return re.findall(r"^        (\w+): ", section.partition("\n\n")[0], re.M)


def missing(method):
    """Return what a method lacks, each by the name of the file that should have it."""
    name, lacks = method.__name__, []
    if not (ROOT / file_of_tests(method)).is_file():
        lacks.append(f"{file_of_tests(method)}: tests against its references")
    elif not checked(method):
        lacks.append(f"{file_of_tests(method)}: CHECKED, its settings for check_method")
    if getattr(pj, name, None) is not method or name not in pj.__all__:
        lacks.append(f"peftjax/__init__.py: {name}")
    if method not in CODECS:
        lacks.append(
            "peftjax/hub/torch/codecs/__init__.py: a codec, or why there is none"
        )
    fields = {(name, field.name) for field in dataclasses.fields(method)}
    apart = {(name, setting) for setting in departures(method)}
    if fields - apart - VOCABULARY_PAIRS[False] or apart - VOCABULARY_PAIRS[True]:
        lacks.append(f"docs/vocabulary.md: the settings of {name}")
    return [*lacks, *placement(method)]


def placement(method):
    """Return what is missing of the layers that the method adapts by default."""
    # a baseline has a name of its own there; a table of tokens is no part of a layer
    if method.replaces or method.kinds == ("embedding",):
        return []
    examples = checked(method) if (ROOT / file_of_tests(method)).is_file() else ()
    try:
        for example in examples:
            # what is beside a module is at none of a layer's parts
            if not (isinstance(example, pj.Bottleneck) and example.side == "input"):
                rules("bert", example)
    except ValueError:
        return [f"peftjax/presets.py: a placement of {method.__name__}"]
    return []


@pytest.mark.parametrize("method", methods.ALL, ids=lambda method: method.__name__)
def test_nothing_is_missing(method):
    assert missing(method) == []


def test_the_table_of_settings_names_no_other():
    known = {
        (method.__name__, field.name)
        for method in methods.ALL
        for field in dataclasses.fields(method)
    }
    assert VOCABULARY_PAIRS[False] | VOCABULARY_PAIRS[True] == known
    assert VOCABULARY_PAIRS[True] == {
        (method.__name__, setting)
        for method in methods.ALL
        for setting in departures(method)
    }


def test_rank_has_no_default_anywhere():
    for method in methods.ALL:
        for field in dataclasses.fields(method):
            assert field.name != "rank" or field.default is dataclasses.MISSING


@dataclass(frozen=True)
class Novel(pj.Method):
    gain: float = 1.0


def test_all_that_a_new_method_lacks_is_named():
    found = [line.partition(":")[0] for line in missing(Novel)]
    assert found == [
        "tests/methods/test_test_every_method.py",
        "peftjax/__init__.py",
        "peftjax/hub/torch/codecs/__init__.py",
        "docs/vocabulary.md",
    ]
