"""How fast batches come, beside how fast a training step consumes them.

    python -m experiments.benchmarks.data_throughput

Text: rows of 20 to 100 tokens padded to buckets, against LoRA on MiniLM-L6 (random
weights). Images: JPEG files of 300x300 decoded and resized to 224 batch by batch,
against LoRA on ViT-B/16. Both ratios should be at least 5. The data side runs alone;
in training it shares the processor with the step.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from PIL import Image

import peftjax as pj
from experiments import cli
from experiments.records import circumstances
from peftjax import storage
from peftjax.data import images
from peftjax.data.pipeline import train_batches
from peftjax.data.tokenizer import Tokens, columns
from peftjax.models.bert import Bert, BertConfig
from peftjax.models.vit import vit
from peftjax.parallel.mesh import make_mesh
from peftjax.training.losses import cross_entropy
from peftjax.training.state import create_state
from peftjax.training.step import make_step

MINILM = BertConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--out", type=Path, help="JSON file to write")
    options = parser.read(argv)
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        text = train_batches(_text(draw), 32, seed=0)
        pictures = train_batches(_images(draw, Path(folder)), 8, seed=0)
        result = {
            "text, MiniLM-L6": _measured(text, 32, _text_step, 200),
            "images, ViT-B/16": _measured(pictures, 8, _image_step, 10),
        }
    for name, found in result.items():
        print(name, {key: float(f"{x:.3g}") for key, x in found.items()})
    if options.out:
        storage.write_json(options.out, {**result, **circumstances()})


def _text(draw: np.random.Generator, examples: int = 4000) -> dict:
    starts = np.concatenate([[0], np.cumsum(draw.integers(20, 101, examples))])
    ids = draw.integers(5, MINILM.vocab_size, starts[-1]).astype(np.int32)
    tokens = Tokens(ids, np.zeros(len(ids), np.int8), starts)
    return {**columns(tokens, 0), "label": draw.integers(0, 2, examples)}


def _images(draw: np.random.Generator, folder: Path, examples: int = 64) -> dict:
    files = []
    for number in range(examples):
        coarse = draw.integers(0, 256, (40, 40, 3), np.uint8)
        path = folder / f"{number}.jpg"
        Image.fromarray(coarse).resize((300, 300)).save(path, quality=90)
        files.append((path, number % 10))
    labels, column = images.read_files("benchmark", files, 10, 224)
    return {"image": column, "label": labels}


def _text_step(batch: dict) -> Callable[[dict], None]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    model = Bert(MINILM, head=2)
    rules = {r"layers_\d+/attention/(query|value)/kernel": pj.LoRA(rank=8, alpha=16)}
    return _step(model, lambda batch: [batch[name] for name in names], rules, batch)


def _image_step(batch: dict) -> Callable[[dict], None]:
    rules = {r"blocks_\d+/attn/qkv/kernel": pj.LoRA(rank=8, alpha=16)}
    model = vit("B/16", num_classes=10)
    return _step(model, lambda batch: [images.normalise(batch["image"])], rules, batch)


def _step(model, inputs, rules, batch) -> Callable[[dict], None]:
    variables = jax.jit(model.init)(jax.random.key(0), *inputs(batch))
    peft = pj.adapt(model.apply, variables, *inputs(batch), rules=rules)

    def loss(apply, batch, key):
        return cross_entropy(apply(*inputs(batch)), batch["label"])

    mesh, optimizer = make_mesh(), optax.adamw(1e-3)
    step = make_step(peft, optimizer, loss, mesh)
    state = create_state(peft, optimizer, jax.random.key(1), mesh)
    variables = step.shard_base(variables)

    def run(batch: dict) -> None:
        nonlocal state
        state, metrics = step(state, variables, batch)
        jax.block_until_ready(metrics)

    return run


def _measured(
    data: Iterator[dict],
    batch_size: int,
    make: Callable[[dict], Callable[[dict], None]],
    count: int,
) -> dict[str, float]:
    """Return examples per second, made and used, and their ratio."""
    start = time.perf_counter()
    batches = [next(data) for _ in range(count)]
    made = count * batch_size / (time.perf_counter() - start)
    step, timed = make(batches[0]), batches[:3]
    # Every shape twice first, so that no compilation is timed.
    for batch in timed * 2:
        step(batch)
    start = time.perf_counter()
    for batch in timed:
        step(batch)
    used = len(timed) * batch_size / (time.perf_counter() - start)
    return {"made_per_s": made, "used_per_s": used, "made_over_used": made / used}


if __name__ == "__main__":
    sys.exit(main())
