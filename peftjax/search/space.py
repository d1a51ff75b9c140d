"""GLoRA's search space: the 432 forms of every layer, counted and drawn.

Chavan et al., arXiv 2306.07967, the layer-wise search; space, distribution and counts
are those of the released code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from peftjax.core.peft import Peft
from peftjax.core.site import Adapters, Site
from peftjax.methods.glora_supernet import CHOICES, GLoRASupernet

UpdateFrozen = Callable[[Adapters, Any, Any, Any, jax.Array], Adapters]

LORA, D = 3, 3  # the code of the form, the column of the support
SUPPORTS = len(CHOICES)


@dataclass(frozen=True)
class Space:
    """The structures that the `GLoRASupernet` sites of a plan can take.

    A candidate is `genes [layers, 5]`, integers: a row for each layer in the order of
    the plan's sites, those of a stack one after the other, and a column for each of the
    supports A … E. A gene is the form: 0 none, 1 constant, 2 vector, 3 + i LoRA of rank
    `ranks[i]`. In the released space, whose only rank is the supernet's, a row is the
    leaf `structure` as it stands.

    Attributes:
        peft: a plan with supernet sites; abstract variables suffice. Scanned layers are
            drawn, scored and searched each for itself; only `to_glora` refuses them.
        ranks: the LoRA ranks to choose from; by default each supernet's own alone.

    Raises:
        ValueError: no rule is a `GLoRASupernet`, or a supernet does not hold the ranks.

    >>> import flax.linen as nn
    >>> from peftjax.core.peft import adapt
    >>> model, x = nn.Dense(4), jnp.ones((1, 6))
    >>> v = model.init(jax.random.key(0), x)
    >>> peft = adapt(model.apply, v, x, rules={"kernel": GLoRASupernet(rank=2)})
    >>> int(Space(peft).count([[3, 2, 0, 1, 0]]))  # 2 (4 + 6) + 4 + 1
    25
    """

    peft: Peft
    ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.supernets:
            found = ", ".join(sorted({str(method) for _, method in self.peft.rules}))
            raise ValueError(
                f"rules without a supernet: expected GLoRASupernet at the layers to "
                f"search, found {found}"
            )
        if self.ranks is None:
            return
        object.__setattr__(self, "ranks", tuple(self.ranks))
        for site, method in self.supernets:
            known = set(self.ranks).intersection(range(1, method.rank + 1))
            if not known or len(known) < len(self.ranks):
                raise ValueError(
                    f"{site.path}: ranks={self.ranks}: expected different integers of "
                    f"1 … {method.rank}, the rank of its supernet"
                )

    @cached_property
    def supernets(self) -> tuple[tuple[Site, GLoRASupernet], ...]:
        """The searched sites with their methods."""
        return tuple(
            (site, site.method)
            for site in self.peft.sites
            if isinstance(site.method, GLoRASupernet)
        )

    @property
    def layers(self) -> int:
        """The number of searched layers."""
        return sum(self._depths)

    @cached_property
    def _depths(self) -> list[int]:
        """The number of layers of each site: 1, or how many are stacked."""
        return [prod(site.stack) for site, _ in self.supernets]

    @cached_property
    def choices(self) -> tuple[np.ndarray, ...]:
        """The genes of A, B, C, D and E."""
        more = range(LORA + 1, LORA + len(self.ranks or (0,)))
        return tuple(
            np.array([*codes, *(more if LORA in codes else ())], np.int32)
            for codes in CHOICES
        )

    def count(self, genes: ArrayLike) -> np.ndarray:
        """Return the parameters of candidates by type, as the released code counts.

        It is what the papers' sizes are given in and so what a limit means: the numbers
        that the found forms store, head excluded.

        Args:
            genes: `[..., layers, 5]`.

        Raises:
            ValueError: another shape, or a gene that the space does not hold.
        """
        return self._costs_of(genes).sum((-2, -1))

    def trained(self, genes: ArrayLike) -> np.ndarray:
        """Return how many of `count` reach the output: D needs a bias to scale."""
        biased = [site.bias is not None for site, _ in self.supernets]
        unused = self._costs_of(genes)[..., D] * ~np.repeat(biased, self._depths)
        return self.count(genes) - unused.sum(-1)

    def random(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """Draw candidates uniformly, `[number, layers, 5]` int32."""
        shape = (number, self.layers)
        return np.stack([rng.choice(codes, shape) for codes in self.choices], -1)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw one candidate uniformly, `[layers, 5]` int32; pure."""
        keys = jax.random.split(key, SUPPORTS)
        draws = [
            jax.random.choice(part, jnp.asarray(codes), (self.layers,))
            for part, codes in zip(keys, self.choices)
        ]
        return jnp.stack(draws, -1)

    def place(self, adapters: Adapters, genes: Any) -> Adapters:
        """Return adapters, or their frozen part, with a candidate's structures; pure.

        Args:
            adapters: `{path: {name: array}}`.
            genes: `[layers, 5]`, array or tracer: nothing is compiled anew for it.
        """
        genes, start = jnp.asarray(genes, jnp.int32), 0
        placed = dict(adapters)
        for (site, method), depth in zip(self.supernets, self._depths):
            own = genes[start : start + depth].reshape(*site.stack, SUPPORTS)
            # What is no LoRA keeps the supernet's rank, as a fresh supernet has it.
            rank = jnp.array([method.rank] * LORA + self._ranks(method), jnp.int32)
            placed[site.path] = {
                **adapters[site.path],
                "structure": jnp.minimum(own, LORA),
                "ranks": rank[own[..., :3]],
            }
            start += depth
        return placed

    def _ranks(self, method: GLoRASupernet) -> list[int]:
        return list(self.ranks or (method.rank,))

    @cached_property
    def _costs(self) -> np.ndarray:
        """Parameters by layer, support and gene; -1 where there is no such gene."""
        width = 1 + max(int(codes.max()) for codes in self.choices)
        table = np.full((len(self.supernets), SUPPORTS, width), -1)
        for row, (site, method) in enumerate(self.supernets):
            rank = [1] * LORA + self._ranks(method)
            for support, codes in enumerate(self.choices):
                for gene in codes:
                    alone = np.eye(SUPPORTS, dtype=int)[support] * min(gene, LORA)
                    fixed = method.subnet(alone.tolist(), [rank[gene]] * 3)
                    table[row, support, gene] = fixed.count(site.layer())
        return np.repeat(table, self._depths, 0)

    def _costs_of(self, genes: ArrayLike) -> np.ndarray:
        genes = np.asarray(genes)
        if genes.shape[-2:] != (self.layers, SUPPORTS):
            raise ValueError(
                f"genes of shape {genes.shape}: expected [..., {self.layers}, "
                f"{SUPPORTS}], a row for each searched layer"
            )
        inside = (genes >= 0) & (genes < self._costs.shape[-1])
        rows = np.arange(self.layers)[:, None], np.arange(SUPPORTS)
        costs = np.where(inside, self._costs[(*rows, genes * inside)], -1)
        if (costs < 0).any():
            *_, layer, support = np.argwhere(costs < 0)[0]
            raise ValueError(
                f"gene {'ABCDE'[support]} of layer {layer}: expected one of "
                f"{self.choices[support].tolist()}"
            )
        return costs


def draw(peft: Peft, ranks: tuple[int, ...] | None = None) -> UpdateFrozen:
    """Return the update of frozen leaves that trains a supernet: it draws structures.

    For `make_step(..., update_frozen=draw(peft))`: after each step every layer draws
    one of its structures, uniformly and independently, for the whole of the next batch
    and all its micro-batches. A fresh supernet has the largest structure, so the first
    step trains that one. The released code draws in each forward pass, in evaluation
    too, so that what it logs as test accuracy is that of a random subnet.

    Args:
        peft: a plan with `GLoRASupernet` sites, scanned or not.
        ranks: as in `Space`.

    Returns:
        `f(frozen, trainable, grads, step, key) -> frozen`, pure; only `frozen` and
        `key` are read. The key has to be another one in every step.

    Raises:
        ValueError: as `Space`.
    """
    space = Space(peft, ranks)

    def update(
        frozen: Adapters, trainable: Any, grads: Any, step: Any, key: jax.Array
    ) -> Adapters:
        del trainable, grads, step
        return space.place(frozen, space.sample(key))

    return update
