"""The figures of README and guides are those of the committed results."""

import pytest

from experiments.benchmarks import readme

PARTS = [(file, name) for file, parts in readme.PAGES.items() for name in parts]


@pytest.mark.parametrize("file", readme.PAGES, ids=lambda file: file.name)
def test_the_figures_are_those_of_the_results(file):
    text = file.read_text()
    assert readme.filled(file) == text, "run python -m experiments.benchmarks.all"


@pytest.mark.parametrize(("file", "name"), PARTS)
def test_another_figure_is_found(file, name):
    text = file.read_text()
    begin = f"<!-- {name} -->\n"
    changed = text.replace(begin, f"{begin}| 0.99 |\n")
    assert changed != text and readme.filled(file, changed) == text
    with pytest.raises(ValueError, match="expected one part"):
        readme.filled(file, text.replace(begin, ""))
