"""`adapt`: a model and rules to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from peftjax.core import paths
from peftjax.core.call import Call
from peftjax.core.method import Method
from peftjax.core.peft import Peft
from peftjax.core.plan import Leaves, plan


def adapt(
    apply_fn: Callable[..., Any],
    variables: Any,
    *example_args: Any,
    rules: Mapping[str, Method],
    strict: bool = False,
    flatten: bool = True,
    **example_kwargs: Any,
) -> Peft:
    """Plan the adapters of a model.

    Args:
        apply_fn: `apply_fn(variables, *args, **kwargs)`, such as `model.apply`.
        variables: its variables, arrays or `jax.ShapeDtypeStruct`s; boxed
            (partitioned) parameters are looked into.
        *example_args: arguments like those of later calls, arrays or shapes; the first
            axis of the first array counts the examples.
        rules: regular expression, matched against the whole path of a parameter, to
            method; the first match wins.
        strict: a site that would fall back to merging is an error.
        flatten: flatten activations to `[tokens, in]`, which is faster; False where a
            second leading axis is sharded over an Auto mesh.
        **example_kwargs: keyword arguments of the example call.

    Returns:
        The plan: static facts and pure functions.

    Raises:
        ValueError: a rule decides no parameter, a method does not fit its leaf, or
            (strict) a use of a weight is not recognised.

    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from peftjax.methods.lora import LoRA
    >>> model, x = nn.Dense(4), jnp.ones((2, 3))
    >>> variables = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, variables, x, rules={"kernel": LoRA(2, alpha=4.0)})
    >>> adapters = peft.init(jax.random.key(1))
    >>> jax.tree.map(jnp.shape, adapters)
    {'kernel': {'a': (3, 2), 'b': (2, 4)}}
    >>> bool((peft.apply(variables, adapters, x) == model.apply(variables, x)).all())
    True
    """
    names, leaves, structure = paths.flatten(variables)
    chosen = paths.match([name for name in names if name is not None], rules)
    avals = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    known = Leaves(tuple(names), avals)
    call = Call.of(apply_fn, structure, example_args, example_kwargs)
    jaxpr, _ = call.trace(avals)
    sites = plan(jaxpr, known, chosen, call.examples, flatten)
    slow = [f"{site.path}: {site.reason}" for site in sites if not site.fast]
    if strict and slow:
        raise ValueError(
            "strict=True, but these sites would form a merged weight at every step:\n  "
            + "\n  ".join(slow)
        )
    peft = Peft(apply_fn, tuple(rules.items()), sites, known, structure, variables)
    peft.check_formulas(call)
    return peft
