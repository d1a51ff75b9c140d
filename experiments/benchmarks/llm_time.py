"""Tokens per second of a language model, trained and generating, beside torch.

`python -m experiments.benchmarks.llm_time --peer PYTHON`

SmolLM2-135M on random weights, in float32. A training step is the loss of 512 tokens
and its gradient with respect to a LoRA of rank 8 on every linear layer, without the
optimizer, of layers that follow each other or are scanned; generation is 32 greedy
tokens after 64, of the base, with a cache.
`--peer` names a Python with torch, the torch library of adapters and `transformers`
(`pip install torch peft transformers`), which takes turns with this one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

import peftjax as pj
from configs.llm.common import rules
from configs.llm.smollm2_gsm8k import EVERY, get_config
from experiments import cli
from experiments.benchmarks.peer import peer
from experiments.measure import interleave, ratio
from experiments.records import circumstances
from experiments.tasks import llm
from peftjax import storage
from peftjax.models.generate import generate
from peftjax.models.lm_loss import lm_loss

TOKENS, PROMPT, NEW = 512, 64, 32
SIZES = {"train": TOKENS, "train scanned": TOKENS, "generate": NEW}
Call = Callable[[], Any]
PEERS = {"train": "train", "train scanned": "train", "generate": "generate"}


def calls() -> dict[str, Call]:
    """Return what is timed here."""
    train, generated = _calls(scan_layers=False)
    scanned, _ = _calls(scan_layers=True)
    return {"train": train, "train scanned": scanned, "generate": generated}


def _calls(scan_layers: bool) -> tuple[Call, Call]:
    config: Any = get_config("method=lora")
    config.model.scan_layers = scan_layers
    model = llm.model(config)
    ids = jax.random.randint(jax.random.key(0), (1, TOKENS), 0, model.config.vocab_size)
    variables = jax.jit(model.init)(jax.random.key(1), ids[:, :2])
    lora = dict(rules(pj.LoRA(rank=8, alpha=16.0), EVERY))
    peft = pj.adapt(model.apply, variables, ids, rules=lora, strict=True)
    adapters = jax.jit(peft.init)(jax.random.key(2))

    @jax.jit
    def step(variables: Any, adapters: Any, ids: jax.Array) -> Any:
        def loss(adapters: Any) -> jax.Array:
            return lm_loss(peft.apply(variables, adapters, ids), ids)

        return jax.value_and_grad(loss)(adapters)

    return (
        lambda: step(variables, adapters, ids),
        lambda: generate(model, variables, ids[:, :PROMPT], steps=NEW),
    )


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--rounds", type=cli.count, default=5, help="timed turns")
    parser.flag("--peer", help="a Python with torch, peft and transformers")
    parser.flag("--out", type=Path, default=Path("runs/llm_time.json"), help="result")
    options = parser.read(argv)
    timed = calls()
    with ExitStack() as stack:
        if options.peer:
            given = circumstances()["hardware"]["cores"], TOKENS, PROMPT, NEW
            step = stack.enter_context(peer(options.peer, "peer_llm.py", *given))
            names = sorted(set(PEERS.values()))
            timed |= {f"torch {name}": functools.partial(step, name) for name in names}
        seconds = interleave(timed, options.rounds)
    table = Table("", "tokens/s", "torch: tokens/s", "torch / ours, time")
    found: dict[str, dict[str, float]] = {}
    for name, tokens in SIZES.items():
        row = {"tokens_per_second": tokens / median(seconds[name])}
        if (other := f"torch {PEERS[name]}") in seconds:
            row["torch_tokens_per_second"] = tokens / median(seconds[other])
            row["torch_over_ours"] = ratio(seconds, other, name)
        found[name] = row
        table.add_row(name, *(f"{value:.2f}" for value in row.values()))
    Console(width=100).print(table)
    shapes = {"tokens": TOKENS, "prompt": PROMPT, "new": NEW, "batch": 1}
    document = {"shapes": shapes, "rounds": options.rounds, **found, **circumstances()}
    storage.write_json(options.out, document)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    sys.exit(main())
