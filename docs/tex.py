"""The formulas of docstrings as TeX, and TeX as MathML, which browsers draw."""

import re

from latex2mathml.converter import convert

SIGNS = {
    "∘": r"\circ ",
    "⊗": r"\otimes ",
    "⊙": r"\odot ",
    "⋆": r"\star ",
    "·": r"\cdot ",
    "−": "-",
    "…": r"\dots ",
    "Σ": r"\sum ",
    "Δ": r"\Delta ",
    "Λ": r"\Lambda ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ",
    "‖": r"\| ",
    "ᵀ": r"^{\top}",
    "⁻¹": "^{-1}",
    "²": "^{2}",
    "½": r"\tfrac{1}{2}",
    "₂": "_{2}",
}
WORD = re.compile(r"(?<![\\A-Za-z])([A-Za-z]{2,})")
INDEX = re.compile(r"_([A-Za-z0-9]+)")


def tex(formula: str) -> str:
    r"""Return a formula as TeX.

    >>> tex("y = x K + s Σ_n (x A_n) ∘ softmax(v)")
    'y = x K + s \\sum _{n} (x A_{n}) \\circ  \\mathrm{softmax}(v)'
    """
    text = INDEX.sub(r"_{\1}", formula)
    text = WORD.sub(_word, text)
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    return text


def _word(match: re.Match[str]) -> str:
    word = match[1]
    return r"\alpha " if word == "alpha" else rf"\mathrm{{{word}}}"


def formulas(docstring: str | None) -> list[str]:
    r"""Return the equations of a docstring's first paragraph.

    >>> formulas("`y = x K`, with `s = a / r`, of `x`. And more.\n\n`z = 0`")
    ['y = x K', 's = a / r']
    """
    first = " ".join((docstring or "").split("\n\n")[0].split())
    return [part for part in re.findall(r"`([^`]+)`", first) if " = " in part]


def mathml(formula: str) -> str:
    """Return a formula as a block of MathML."""
    return convert(tex(formula), display="block")
