"""The README's figures are those of the committed results."""

import pytest

from experiments.benchmarks import readme


def test_the_figures_are_those_of_the_results():
    text = readme.README.read_text()
    assert readme.filled(text) == text, "run python -m experiments.benchmarks.all"


@pytest.mark.parametrize("name", readme.PARTS)
def test_another_figure_is_found(name):
    text = readme.README.read_text()
    begin = f"<!-- {name} -->\n"
    changed = text.replace(begin, f"{begin}| 0.99 |\n")
    assert changed != text and readme.filled(changed) == text
    with pytest.raises(ValueError, match="expected one part"):
        readme.filled(text.replace(begin, ""))
