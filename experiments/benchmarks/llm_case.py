"""SmolLM2-135M, LoRA on its linear layers, GSM8K's training texts: for benchmarks."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import peftjax as pj
from configs.llm.common import rules
from configs.llm.smollm2_gsm8k import EVERY, get_config
from experiments import cli
from experiments.tasks import llm, llm_data
from peftjax.data.chat import Chats
from peftjax.models.lm_loss import lm_losses

LORA = dict(rules(pj.LoRA(rank=8, alpha=16.0), EVERY))
OPTIMIZER = optax.adam(1e-3)


class Case(NamedTuple):
    """The model, its float32 variables, texts that are learned from, and padding."""

    model: Any
    variables: Any
    chats: Chats
    pad: int


def flags(parser: cli.Parser) -> None:
    """Add what `case` reads."""
    drawn = {"action": "store_true", "help": "weights and texts drawn, no files needed"}
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    parser.flag("--data-dir", default="data", help="holds gsm8k/train.jsonl")
    parser.flag("--drawn", **drawn)
    parser.flag("--dtype", default=dtype, help="of the computation")
    parser.flag("--rows", type=cli.count, default=1, help="packed rows of a batch")
    parser.flag("--rounds", type=cli.count, default=3, help="timed turns")


def case(options: Namespace, texts: int) -> Case:
    """Return the model and so many texts, of at most 256 tokens."""
    config: Any = get_config("method=lora")
    config.paths.data, config.model.dtype = options.data_dir, "float32"
    outline = llm.outline(config)
    model = outline.model.clone(dtype=options.dtype)
    if options.drawn:
        init = jax.jit(outline.model.init)
        variables = init(jax.random.key(0), np.ones((1, 2), np.int32))
        return Case(model, variables, _drawn(texts, model.config.vocab_size), 0)
    settings = config.data
    folder = str(llm_data.model_folder(config))
    own = llm_data.codec(folder, settings.template, settings.eos)
    found = llm_data.rows(settings, config.paths.data, "train")[: 2 * texts]
    chats = first(llm_data.encoded(settings, own, found), texts)
    return Case(model, llm.base(config, outline), chats, own.pad)


def first(chats: Chats, count: int) -> Chats:
    """Return the first texts alone."""
    end = chats.starts[count]
    parts = {name: getattr(chats, name)[:end] for name in ("ids", "learned")}
    rows = {"starts": chats.starts[: count + 1], "rows": chats.rows[:count]}
    return replace(chats, **parts, **rows)


def _drawn(texts: int, vocabulary: int) -> Chats:
    """Return texts whose lengths are spread about as GSM8K's are."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.1, 0.3, texts).astype(int), 40, 256)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = random.integers(0, vocabulary, starts[-1]).astype(np.int32)
    learned = np.ones(len(ids), np.int8)
    learned[starts[:-1]] = 0
    return Chats(ids, learned, starts, np.arange(texts), 0, 0)


def adapted(model: Any, variables: Any) -> tuple[Any, Any]:
    """Return LoRA over a base, floats or codes, and its first state."""
    example = np.ones((1, 2), np.int32)
    peft = pj.adapt(model.apply, variables, example, rules=LORA, strict=True)
    adapters = jax.jit(peft.init)(jax.random.key(1))
    return peft, (adapters, OPTIMIZER.init(adapters))


def step(peft: Any) -> Any:
    """Return the jitted `f(variables, state, batch)`: new state, and loss and tokens.

    The loss is summed over the tokens learned; its mean is what is learned from.
    """

    def update(variables: Any, state: Any, batch: Any) -> Any:
        adapters, moments = state
        ids = batch["input_ids"]

        def mean(adapters: Any) -> Any:
            segments = batch["segment_ids"]
            logits = peft.apply(variables, adapters, ids, segment_ids=segments)
            losses, weights = lm_losses(logits, ids, batch["token_mask"])
            total, count = losses.sum(), weights.sum()
            return total / count, (total, count)

        grads, found = jax.grad(mean, has_aux=True)(adapters)
        updates, moments = OPTIMIZER.update(grads, moments)
        return (optax.apply_updates(adapters, updates), moments), found

    return jax.jit(update)
