"""The figures of README and guides, from the committed results alone.

Between `<!-- NAME -->` and `<!-- /NAME -->` stands what `PAGES[FILE][NAME]` returns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjax import storage

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "results"
BENCHMARKS = RESULTS / "benchmarks_cpu.json"


def write() -> None:
    """Put the figures of `results/` into the pages."""
    for file in PAGES:
        storage.write_text(file, filled(file))


def filled(file: Path, text: str | None = None) -> str:
    """Return a page, or another text of it, with its parts made anew.

    Raises:
        ValueError: a part stands in it never, or more than once.
    """
    text = file.read_text() if text is None else text
    for name, part in PAGES[file].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"expected one part between {begin.strip()} and {end}")
        body = f"{begin}{part()}\n{end}"
        text = pattern.sub(lambda _, body=body: body, text)
    return text


def quickstart() -> str:
    """Return the table of the README's first command."""
    lines = (RESULTS / "quickstart_cpu.md").read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


def step_time() -> str:
    """Return what a step costs by method, and on which machine."""
    return _step_time(json.loads(BENCHMARKS.read_text())["step_time"])


def step_time_oldest() -> str:
    """Return the same of the oldest JAX that is supported."""
    return _step_time(json.loads((RESULTS / "step_time_oldest.json").read_text()))


def _step_time(found: Mapping[str, Any]) -> str:
    layouts = found["layouts"]
    unrolled, scanned = layouts["unrolled"], layouts["scanned"]
    head = ("method", "time", "FLOPs", "memory", "scanned: time", "memory")
    head += ("torch: time", "torch / ours")
    rows = []
    for name in found["methods"]:
        torch = unrolled.get(f"torch {name}", {})
        keys = [f"{key}_over_bound" for key in ("time", "flops", "temporary_bytes")]
        ours = [unrolled[name][key] for key in keys]
        ours += [scanned[name][key] for key in (keys[0], keys[2])]
        theirs = [torch.get(f"time_over_{key}") for key in ("bound", "ours")]
        rows.append((name, *map(_shown, [*ours, *theirs])))
    below = [_machine(found)]
    if "torch bound" in unrolled:
        frozen = [unrolled[name]["seconds"] for name in ("torch bound", "bound")]
        below.append(f"Torch's frozen model takes {frozen[0] / frozen[1]:.2f} of ours.")
    return _table(head, rows) + "\n\n" + "\n".join(below)


def llm_time() -> str:
    """Return how a language model trains and generates, beside torch."""
    found = json.loads(BENCHMARKS.read_text())["llm_time"]
    head = ("", "tokens per second", "torch's", "torch's time / ours")
    rows = []
    for name in ("train", "train scanned", "generate"):
        each = found[name]
        pace = each["tokens_per_second"], each["torch_tokens_per_second"]
        ratio = _shown(each["torch_over_ours"])
        rows.append((name, *(f"{value:.0f}" for value in pace), ratio))
    return f"{_table(head, rows)}\n\n{_machine(found)}"


def tpu_bytes() -> str:
    """Return what a step takes over the bound on a TPU."""
    found = json.loads((RESULTS / "tpu_bytes.json").read_text())
    keys = [f"{key}_over_bound" for key in ("flops", "bytes", "temporary_bytes")]
    rows = [
        (name, *(_shown(each[key]) for key in keys))
        for name, each in found["figures"].items()
        if name != "bound"
    ]
    table = _table(("method", "FLOPs", "bytes", "temporaries"), rows)
    return f"{table}\n\njax {found['versions']['jax']}; {found['date'][:10]}."


def llm_quantised() -> str:
    """Return what a LoRA over a base in few bits costs, on each machine."""
    head = ("base", "kernels", "temporary memory", "time", "loss, first and last step")
    parts = []
    for found in _machines("llm_quantised"):
        bases = found["bases"]
        half = bases["bfloat16"]
        rows = []
        for name, own in bases.items():
            keys = ("kernel_bytes", "temporary_bytes")
            ratios = [own[key] / half[key] for key in keys]
            losses = " and ".join(f"{own['losses'][i]:.4f}" for i in (0, -1))
            rows.append((name, *map(_shown, [*ratios, own["time_ratio"]]), losses))
        size = half["kernel_bytes"] / 1e6, half["temporary_bytes"] / 1e6
        below = f"1.00 is {size[0]:.0f} MB of kernels, {size[1]:.0f} MB and "
        below += f"{half['seconds']:.2f} s, {found['rounds']} turns. {_shapes(found)}"
        below += f" {_machine(found)}"
        parts.append(f"{_table(head, rows)}\n\n{below}")
    return "\n\n".join(parts)


def llm_packed() -> str:
    """Return what packing saves, on each machine."""
    head = ("rows", "loss", "tokens of texts", "tokens/s", "padded / own, time")
    parts = []
    for found in _machines("llm_packed"):
        rows = []
        for name, own in found["layouts"].items():
            share = _shown(found["tokens"] / own["computed"])
            speed = f"{own['tokens_per_second']:.0f}"
            ratio = _shown(own["padded_over_own_time"])
            rows.append((name, f"{own['loss']:.6f}", share, speed, ratio))
        below = f"{found['texts']} texts, {found['rounds']} turns. {_shapes(found)}"
        below += f" {_machine(found)}"
        parts.append(f"{_table(head, rows)}\n\n{below}")
    return "\n\n".join(parts)


def _machines(benchmark: str) -> list[Mapping[str, Any]]:
    files = [RESULTS / f"benchmarks_{kind}.json" for kind in ("cpu", "gpu")]
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    return [one[benchmark] for one in found if benchmark in one]


def _shapes(found: Mapping[str, Any]) -> str:
    shapes = found["shapes"]
    size = f"{shapes['rows']} x {shapes['tokens']} tokens, in {shapes['dtype']}"
    return f"{size}{', weights and texts drawn' * found['drawn']};"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in every)


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def _machine(found: Mapping[str, Any]) -> str:
    hardware, versions = found["hardware"], found["versions"]
    device = hardware["devices"][0]
    where = "" if device == "cpu" else f"{device}, "
    return (
        f"{where}{hardware['cores']} cores of {hardware['cpu']}; "
        f"Python {versions['python']}, jax {versions['jax']}, "
        f"flax {versions['flax']}; {found['date'][:10]}."
    )


PAGES = {
    README: {"quickstart": quickstart},
    ROOT / "docs/cost.md": {
        "step_time": step_time,
        "step_time_oldest": step_time_oldest,
        "llm_time": llm_time,
        "tpu_bytes": tpu_bytes,
    },
    ROOT / "docs/quantised.md": {"llm_quantised": llm_quantised},
    ROOT / "docs/language_models.md": {"llm_packed": llm_packed},
}
