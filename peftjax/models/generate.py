"""Sample from a language model through its cache, in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class LanguageModel(Protocol):
    """What `generate` asks of a model, such as `Llama` or `T5`."""

    @property
    def head(self) -> Any:
        """`"lm"`, or another head."""

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Given `cache=`, return logits and the cache that has seen the tokens."""

    def empty_cache(self, batch: int, length: int) -> Any:
        """Return a cache for `batch` sequences of up to `length` tokens."""


def generate(
    model: LanguageModel,
    params: Any,
    prompt: jax.Array,
    *,
    steps: int,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    eos: int | None = None,
    apply: Callable[..., Any] | None = None,
) -> jax.Array:
    """Continue each prompt by `steps` tokens: the likeliest, or drawn with a key.

    Where the model has an encoder, the prompt is the source, and the target follows.

    Args:
        model: a language model with `head="lm"`.
        params: what `apply` takes first: the model's variables, adapted, merged or
            neither.
        prompt: `[batch, tokens]`, integers; shorter prompts are padded on the left.
        steps: how many tokens to add; each value compiles anew.
        mask: `[batch, tokens]`, 1 for a token, 0 for padding; ones if absent.
        key: a PRNG key; without one the result is greedy.
        temperature: divides the logits before drawing.
        eos: after this token a sequence only repeats it.
        apply: `model.apply` if absent. For adapters define once
            `def apply(both, *args, **kwargs): return peft.apply(*both, *args,
            **kwargs)` and give `params=(variables, adapters)`.

    Returns:
        `[batch, tokens + steps]`, int32: the prompt and what follows.

    Raises:
        ValueError: the model has no language head, there is nothing to do, or a prompt
            is padded on the right.
    """
    prompt = jnp.asarray(prompt, jnp.int32)
    if model.head != "lm":
        raise ValueError(
            f'generate: expected a model with head="lm", found {model.head!r}'
        )
    if prompt.ndim != 2 or prompt.shape[1] == 0 or steps < 1 or not temperature > 0:
        raise ValueError(
            "generate: expected prompt [batch, tokens], steps >= 1 and temperature > "
            f"0, found {prompt.shape}, {steps} and {temperature}"
        )
    mask = jnp.ones_like(prompt) if mask is None else jnp.asarray(mask)
    if mask.shape != prompt.shape or not np.asarray(mask[:, -1]).all():
        raise ValueError(
            f"generate: expected a mask {prompt.shape} whose last column is 1: pad "
            "prompts on the left"
        )
    run = apply or model.apply
    return _generate(run, model, steps, eos, params, prompt, mask, key, temperature)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(apply, model, steps, eos, params, prompt, mask, key, temperature):
    def choose(logits, key):
        if key is None:
            return jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32), None
        key, own = jax.random.split(key)
        token = jax.random.categorical(own, logits[:, -1] / temperature)
        return token.astype(jnp.int32), key

    def step(carry, _):
        cache, token, key = carry
        logits, cache = apply(params, token[:, None], cache=cache)
        new, key = choose(logits, key)
        if eos is not None:
            new = jnp.where(token == eos, eos, new)
        return (cache, new, key), new

    batch, length = prompt.shape
    cache = model.empty_cache(batch, length + steps)
    logits, cache = apply(params, prompt, mask, cache=cache)
    first, key = choose(logits, key)
    _, rest = jax.lax.scan(step, (cache, first, key), length=steps - 1)
    return jnp.concatenate([prompt, first[:, None], rest.T], axis=1)
