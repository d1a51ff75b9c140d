"""One page for each method, made from the method, its tests and the measured costs."""

import ast
import json
import re
import sys
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from docs.picture import picture
from docs.tex import formulas, mathml
from experiments.benchmarks.bound import METHODS
from peftjax import methods
from peftjax.core.method import Layer, Method

ROOT = Path(__file__).parents[1]
D_IN, D_OUT = 768, 3072
# Of no linear layer, on which the costs are measured.
ELSEWHERE = (
    methods.TrainableTokens(tokens=(3, 5)),
    methods.PrefixTuning(length=10),
)
COSTS = ROOT / "results" / "methods_over_bound.json"


@cache
def measured() -> dict[str, dict[str, float]]:
    """Return what a step takes over the bound, by class name, where it was measured."""
    found = json.loads(COSTS.read_text("utf-8"))
    return {
        described["name"]: found["over_bound"][name]
        for name, described in found["methods"].items()
    }


def example(cls: type[Method]) -> Method:
    """Return a method with the settings that are measured."""
    every = (*METHODS.values(), *ELSEWHERE)
    return next(method for method in every if type(method) is cls)


def nav() -> list[dict[str, Any]]:
    """Return titles and addresses, as mkdocs takes them."""
    each = [{cls.__name__: f"methods/{cls.__name__}.md"} for cls in methods.ALL]
    return [{"All": "methods/index.md"}, {"One by one": each}]


def pages() -> dict[str, str]:
    """Return the pages by their address."""
    one = {f"methods/{cls.__name__}.md": page(cls) for cls in methods.ALL}
    return {"methods/index.md": index(), **one}


def index() -> str:
    """Return the table of all methods."""
    rows = [
        "# Methods\n",
        "Trained parameters are those of one layer of "
        f"{D_IN} by {D_OUT} at the settings of each page; FLOPs and memory are of a "
        "training step, over the frozen model's forward and input gradient. (No "
        "adapter needs the gradient of its block's own input: hence numbers below "
        "1.)\n",
        "| method | adds | paper | trained | FLOPs | memory |",
        "|---|---|---|---:|---:|---:|",
    ]
    for cls in methods.ALL:
        cost = measured().get(cls.__name__)
        over = [
            f"{cost[of]:.2f}" if cost else "" for of in ("flops", "temporary_bytes")
        ]
        rows.append(
            f"| [{cls.__name__}]({cls.__name__}.md) | {adds(cls)} | {papers(cls)} | "
            f"{count(example(cls)):,} | {over[0]} | {over[1]} |"
        )
    return "\n".join(rows) + "\n"


def adds(cls: type[Method]) -> str:
    """Return what a method adds, the first line of its file."""
    said = (sys.modules[cls.__module__].__doc__ or "").split("\n")[0]
    return said.partition(": ")[2].rstrip(".")


def sources(cls: type[Method]) -> str:
    """Return the paper, as its file names it, arXiv numbers as links."""
    said = (sys.modules[cls.__module__].__doc__ or "").partition("\n\n")[2].strip()
    link = r"arXiv [\1](https://arxiv.org/abs/\1)"
    return re.sub(r"arXiv\s+(\d{4}\.\d{5})", link, said)


def papers(cls: type[Method]) -> str:
    """Return links to the papers, as its file and its class name them."""
    said = (sys.modules[cls.__module__].__doc__ or "") + (cls.__doc__ or "")
    found = dict.fromkeys(re.findall(r"arXiv\s+(\d{4}\.\d{5})", said))
    return ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in found)


def tested(cls: type[Method]) -> tuple[str, str]:
    """Return the file of a method's tests, and what it says that they compare."""
    file = f"tests/methods/test_{cls.__module__.rpartition('.')[2]}.py"
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return file, (ast.get_docstring(tree) or "").split("\n\n")[0]


def arrays(method: Method) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a fresh adapter of one layer."""
    kernel = jax.ShapeDtypeStruct((D_IN, D_OUT), jnp.float32)

    def init(key: jax.Array, kernel: jax.Array) -> dict[str, jax.Array]:
        return method.init(key, Layer(D_IN, D_OUT, kernel=kernel))

    made = jax.eval_shape(init, jax.random.key(0), kernel)
    return {name: array.shape for name, array in made.items()}


def count(method: Method, shared: bool = True) -> int:
    """Return the trained parameters of one layer, with or without those it shares."""
    without = method.frozen if shared else (*method.frozen, *method.shared)
    shapes = arrays(method).items()
    return sum(prod(shape) for name, shape in shapes if name not in without)


def settings(method: Method) -> str:
    """Return a method as one writes it, settings at their defaults left out."""
    fields = type(method).__dataclass_fields__
    given = [
        f"{name}={getattr(method, name)!r}"
        for name, field in fields.items()
        if getattr(method, name) != field.default
    ]
    return f"pj.{type(method).__name__}({', '.join(given)})"


def cost(name: str) -> str:
    """Return a sentence about the cost of a training step."""
    if name in {type(method).__name__ for method in ELSEWHERE}:
        return "Not measured: it is of no linear layer's weight."
    if name not in measured():
        return "Not measured yet: `python -m experiments.benchmarks.bound` does it."
    over = measured()[name]
    return (
        f"A training step takes {over['flops']:.2f} of the FLOPs and "
        f"{over['temporary_bytes']:.2f} of the temporary memory of the bound, the "
        "frozen model's forward and input gradient (XLA's own counts, "
        "`results/methods_over_bound.json`; the method on every linear layer, or what "
        "it edits, of one ViT block of width 768, batch 8, 197 tokens)."
    )


def page(cls: type[Method]) -> str:
    """Return the page of one method."""
    name, method = cls.__name__, example(cls)
    shapes = arrays(method)
    file, compared = tested(cls)
    math = "\n\n".join(mathml(formula) for formula in formulas(cls.__doc__))
    rows = [
        f"| `{array}` | {list(shape)} | "
        f"{'frozen' if array in method.frozen else f'{prod(shape):,}'} |"
        for array, shape in shapes.items()
    ]
    return "\n".join(
        [
            f"# {name}\n",
            f"{adds(cls)[0].upper()}{adds(cls)[1:]}.\n",
            f"{sources(cls)}\n",
            f'<div class="formula" markdown="0">{math}</div>\n' if math else "",
            f"::: {cls.__module__}.{name}",
            "    options:\n      heading_level: 2\n      members: []\n",
            "## Arrays\n",
            f"Of `{settings(method)}` on one layer of {D_IN} by {D_OUT}, whose weight "
            f"has {D_IN * D_OUT:,} entries:\n",
            "| array | shape | trained |\n|---|---|---:|",
            *rows,
            f"| together | | {count(method):,} |\n",
            picture(shapes, method.frozen, (D_IN, D_OUT)),
            "\n## Cost\n",
            f"{cost(name)}\n",
            "## What it was tested against\n",
            f"{compared} `{file}` holds these tests, and `check_method` sees it with "
            "the settings `CHECKED` there: merged equals adapted, gradients, counts, "
            "scanned and stacked layers, float32 and bfloat16, files.\n",
        ]
    )
