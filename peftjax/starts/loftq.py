"""LoftQ: a base in codes, and low-rank factors of what the codes lose.

Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", arXiv
2310.08659. With the factors first, QPiSSA (Meng et al., arXiv 2404.02948).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from peftjax.core.arrays import planned_leaves as known
from peftjax.core.axes import arrange
from peftjax.core.coded import Coded
from peftjax.core.peft import Peft
from peftjax.core.site import Adapters, Site
from peftjax.methods.lora import LoRA
from peftjax.quantised.formats import Format, encode
from peftjax.quantised.tree import quantise
from peftjax.starts.moments import dense_sites


class Based(NamedTuple):
    """A base in codes, and the adapters that go with it.

    Attributes:
        variables: of the model, some leaves in codes; plan again with them.
        adapters: `{path: {"a", "b"}}` of the sites whose weight is in codes.
    """

    variables: Any
    adapters: Adapters


def loftq(
    peft: Peft,
    variables: Any,
    rules: Mapping[str, Format],
    *,
    steps: int = 5,
    first: Literal["codes", "factors"] = "codes",
) -> Based:
    """Return codes Q and LoRA factors such that `Q + s A B` is near the weight K.

    In turn `Q = q(K − s A B)` and `s A B` is the best approximation of rank r to
    `K − Q`, its singular values shared evenly (Algorithm 1 of the paper), A B beginning
    at zero. With `first="factors"` they begin as the best approximation of K itself,
    which is QPiSSA, and `steps` of 0 leaves them so.

    Args:
        peft: a plan with LoRA on dense layers, over the weights in floats.
        variables: the model's, in floats.
        rules: as for `quantise`; what LoRA does not adapt is coded as there.
        steps: how often the factors are taken from what the codes lose; 5 in the paper.
        first: what begins.

    Returns:
        The base in codes and the adapters of the sites that are coded.

    Raises:
        TypeError, ValueError: as `quantise`; no LoRA on a weight in codes; too few
            steps.

    >>> import flax.linen as nn
    >>> from peftjax.core.peft import adapt
    >>> from peftjax.quantised import NF4
    >>> x = jnp.ones((1, 64))
    >>> model = nn.Dense(32)
    >>> variables = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, variables, x, rules={"kernel": LoRA(8, alpha=16.0)})
    >>> coded, adapters = loftq(peft, variables, {"kernel": NF4()})
    >>> kernel, p = variables["params"]["kernel"], adapters["kernel"]
    >>> lost = kernel - coded["params"]["kernel"].decode()
    >>> bool(jnp.linalg.norm(lost - 2 * p["a"] @ p["b"]) < 0.8 * jnp.linalg.norm(lost))
    True
    """
    least = {"codes": 1, "factors": 0}.get(first)
    if least is None or steps < least:
        raise ValueError(
            f"loftq: first={first!r}, steps={steps}: expected 'codes' and at least 1 "
            "step, or 'factors' and at least 0"
        )
    sites = dense_sites(peft, LoRA, "loftq")
    coded = quantise(variables, rules)
    leaves = known(peft.leaves, peft.structure, variables)
    codes = known(peft.leaves, peft.structure, coded)
    inside = [one for one in sites if isinstance(codes[one[0].index], Coded)]
    if not inside:
        raise ValueError(
            f"loftq: no weight that LoRA adapts is in codes; {sites[0][0].path} is one "
            "that the rules may name"
        )
    others = peft.init(jax.random.key(0), variables)  # nothing of them is kept

    def recode(adapters: Adapters) -> None:
        left = {path: {**p, "b": -p["b"]} for path, p in adapters.items()}
        merged = peft.merge(variables, {**others, **left})
        rest = known(peft.leaves, peft.structure, merged)
        for i in (site.index for site, _ in inside):
            codes[i] = encode(rest[i], codes[i].format)

    def nearest(lost: Callable[[int], jax.Array]) -> Adapters:
        return {s.path: _nearest(s, lora, lost(s.index)) for s, lora in inside}

    adapters: Adapters = {}
    if first == "factors":
        adapters = nearest(lambda i: leaves[i])
        recode(adapters)
    for step in range(steps):
        if step:
            recode(adapters)
        adapters = nearest(lambda i: leaves[i] - codes[i].decode())
    return Based(jax.tree.unflatten(peft.structure, codes), adapters)


def _nearest(site: Site, lora: LoRA, lost: jax.Array) -> dict[str, jax.Array]:
    """Return the factors of the best approximation of rank r to `lost / s`."""
    matrix = arrange(lost.astype(jnp.float32), site.stored, site.groups)
    split = partial(_factors, rank=lora.rank, scale=lora.scale)
    a, b = site.stacked(split)(matrix)
    return {"a": a, "b": b}


@partial(jax.jit, static_argnames=("rank", "scale"))
def _factors(matrix: jax.Array, rank: int, scale: float) -> Any:
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    root = jnp.sqrt(s[:rank] / scale)
    return u[:, :rank] * root, root[:, None] * vt[:rank]
