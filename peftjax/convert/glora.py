"""From a supernet with chosen structures to the fixed methods they stand for.

Chavan et al., arXiv 2306.07967; the search space is in `methods.glora_supernet`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from peftjax.core.method import Method
from peftjax.core.peft import Peft
from peftjax.core.site import Adapters
from peftjax.methods.glora_supernet import GLoRASupernet


class Subnet(NamedTuple):
    """Rules for `adapt`, and the adapters of the plan that they give."""

    rules: dict[str, Method]
    adapters: Adapters


def to_glora(peft: Peft, adapters: Adapters) -> Subnet:
    """Return the fixed GLoRA of every supernet site, with its own parameters.

    Sites of other methods stay what they are. A site whose structure is all "none" is
    left out: it is the frozen layer.

    Args:
        peft: a plan with `GLoRASupernet` sites.
        adapters: concrete adapters; `structure` and `ranks` say which subnet is meant.

    Raises:
        ValueError: stacked layers, which cannot hold different fixed methods; or no
            site is left.

    >>> import jax, jax.numpy as jnp, flax.linen as nn
    >>> from peftjax.core.peft import adapt
    >>> model, x = nn.Dense(4), jnp.ones((1, 6))
    >>> v = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, v, x, rules={"kernel": GLoRASupernet(rank=2)})
    >>> adapters = peft.init(jax.random.key(1))
    >>> adapters["kernel"]["structure"] = jnp.array([1, 3, 3, 2, 1])
    >>> to_glora(peft, adapters).rules["kernel"].b
    'lora'
    """
    rules: dict[str, Method] = {}
    fixed: Adapters = {}
    for site in peft.sites:
        method, p = site.method, adapters[site.path]
        if isinstance(method, GLoRASupernet):
            if site.stack:
                raise ValueError(
                    f"{site.path}: {site.stack} stacked layers share one static method "
                    "and cannot have different structures; unstack the model's layers"
                )
            method, p = method.to_glora(p)
        if p:
            rules[re.escape(site.path)], fixed[site.path] = method, dict(p)
    if not rules:
        raise ValueError("every structure is all none: nothing is left to adapt")
    if any(method.shared for method in rules.values()):
        fixed[""] = dict(adapters[""])
    return Subnet(rules, fixed)
