"""Greedy answers, until a stop text or the end token, in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from peftjax.evaluation.batches import BUCKETS, bucket, like_length, padded_left

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from peftjax.models.generate import LanguageModel

CHUNK = 32  # tokens between two looks for stop texts


def answer(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    steps: int,
    eos: int,
    stop: Sequence[str] = (),
    batch: int = 16,
    buckets: Sequence[int] = BUCKETS,
    apply: Callable[..., Any] | None = None,
    watch: Callable[[int], None] | None = None,
) -> list[str]:
    """Return the likeliest continuation of each prompt.

    A batch ends when all of its answers have; none waits for a longer one elsewhere.

    Args:
        model: a language model, as `generate` takes it.
        params: what `apply` takes first.
        tokenizer: the model's own.
        prompts: texts.
        steps: the most tokens of an answer.
        eos: the token that ends an answer.
        stop: texts that end an answer; it is cut before the first.
        batch: prompts at a time.
        buckets: lengths that prompts are padded to; each compiles once.
        apply: as for `generate`; `model.apply` if absent.
        watch: told after each batch how many prompts are answered.

    Raises:
        ValueError: an empty prompt, or one longer than the largest bucket.
    """
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    if not all(rows):
        raise ValueError("answer: expected prompts of at least one token")
    found, done = [""] * len(prompts), 0
    for length, part in like_length(list(map(len, rows)), batch, buckets):
        tokens, texts = np.zeros((len(part), 0), np.int32), [""] * len(part)
        prompt, mask = padded_left([rows[i] for i in part], length)
        for new in continued(
            model, params, prompt, mask, steps=steps, eos=eos, apply=apply
        ):
            tokens = np.concatenate([tokens, new], axis=1)
            cut = [_cut(tokenizer, row, eos, stop) for row in tokens]
            texts = [text for text, _ in cut]
            if all(ended for _, ended in cut):
                break
        for number, text in zip(part, texts):
            found[number] = text
        done += len(set(part.tolist()))
        if watch is not None:
            watch(done)
    return found


def continued(
    model: LanguageModel,
    params: Any,
    prompt: np.ndarray,
    mask: np.ndarray,
    *,
    steps: int,
    eos: int,
    chunk: int = CHUNK,
    apply: Callable[..., Any] | None = None,
) -> Iterator[np.ndarray]:
    """Yield the next tokens `[batch, up to chunk]`, greedily, as they are asked for.

    Args:
        model: as for `answer`.
        params: as for `answer`.
        prompt: `[batch, tokens]`, padded on the left.
        mask: of the prompt.
        steps: how many tokens in all, rounded up to whole chunks.
        eos: after it a sequence only repeats it.
        chunk: tokens of one call.
        apply: as for `answer`.
    """
    run, count = apply or model.apply, -(-steps // chunk)
    size = bucket(prompt.shape[1] + count * chunk, range(128, 2**20, 128))
    cache, token = _begin(run, model, size, params, prompt, mask)
    for number in range(count):
        cache, token, tokens = _go_on(run, chunk, eos, params, cache, token)
        left = steps - number * chunk
        yield np.asarray(tokens)[:, :left]


def _cut(
    tokenizer: Tokenizer, tokens: np.ndarray, eos: int, stop: Sequence[str]
) -> tuple[str, bool]:
    """Return the text of an answer, and whether it has ended."""
    ends = np.flatnonzero(tokens == eos)
    kept = tokens[: ends[0]] if len(ends) else tokens
    text = tokenizer.decode(kept.tolist())
    places = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(places, default=len(text))], bool(places) or len(ends) > 0


@partial(jax.jit, static_argnums=(0, 1, 2))
def _begin(apply, model, size, params, prompt, mask):
    cache = model.empty_cache(len(prompt), size)
    logits, cache = apply(params, prompt, mask, cache=cache)
    return cache, jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _go_on(apply, chunk, eos, params, cache, token):
    def step(carry, _):
        cache, token = carry
        logits, cache = apply(params, token[:, None], cache=cache)
        new = jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)
        return (cache, jnp.where(token == eos, eos, new)), token

    (cache, token), tokens = jax.lax.scan(step, (cache, token), length=chunk)
    return cache, token, tokens.T
