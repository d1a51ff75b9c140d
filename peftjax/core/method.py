"""What the author of a method writes: `init` and one `formula`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

Kind = Literal["dense", "conv", "embedding", "output", "prefix", "other"]
AtInit = Literal["exact", "rounding", "none"]
Params = Mapping[str, jax.Array]
Key = jax.Array | None


@dataclass(frozen=True)
class Layer:
    """The facts of one adapted layer that `Method.init` may use.

    A layer that is stacked (`nn.scan`, experts) is initialised one copy at a time, so
    a method never sees the stack.

    Attributes:
        d_in: rows of the `[in, out]` view: features for a dense layer, `kh*kw*c_in` for
            a convolution, the vocabulary for an embedding.
        d_out: columns of the `[in, out]` view.
        kind: `"dense"`, `"conv"`, `"embedding"`, `"output"` (what a module
            returns, of width d_out; d_in is that of its input, 0 if it has none),
            `"prefix"` (a module that returns no rows yet, `[0, d_out]`) or `"other"`
            (any leaf, for `Full`).
        kernel: the frozen weight, `[d_in, d_out]`, for a method with `needs_kernel`;
            otherwise None.
        path: the leaf's path, for messages.
        spatial: the window of a convolution, `(kh, kw)`; empty for other kinds.
    """

    d_in: int
    d_out: int
    kind: Kind = "dense"
    kernel: jax.Array | None = None
    path: str = ""
    spatial: tuple[int, ...] = ()

    @property
    def weight(self) -> jax.Array:
        """The kernel, for a method that starts from it.

        Raises:
            ValueError: the layer is described without one.
        """
        if self.kernel is None:
            raise ValueError(
                f"{self.path or 'layer'}: this method starts from the weight itself; "
                "expected Layer(..., kernel=array), found none"
            )
        return self.kernel


class LowRank(NamedTuple):
    """A formula as `y = (x K + (x A) B) ∘ scale + constant`.

    Attributes:
        a: `[in, r]`, in the kernel's dtype as b is.
        b: `[r, out]`.
        constant: `[out]`, or 0.0; the bias is in it.
        scale: `[out]`, or None for 1.
    """

    a: Any
    b: Any
    constant: Any = 0.0
    scale: Any = None


@dataclass(frozen=True)
class Method:
    """An adapter: a frozen dataclass with `init` and one `formula`.

    Fields of the dataclass are static settings; what must change without recompiling
    is an array leaf of `p`.

    Attributes:
        frozen: names of leaves that are never trained.
        float32: names of leaves that are never cast to the kernel's compute dtype.
        kinds: the kinds of layer on which the method is defined; others are refused.
        at_init: the fresh adapter equals the frozen layer `"exact"`-ly, up to
            `"rounding"`, or not at all (`"none"`).
        uses_bias: the bias enters the formula otherwise than by addition.
        needs_kernel: `init` reads `layer.weight`.
        replaces: the method's `value` replaces the leaf; there is no formula (`Full`).
        shared: names of leaves that all sites share; they live under the path `""`.
        gated: the formula weighs its heads by gates that depend on x; its argument
            `gates [heads]`, where given, stands in for them, so that the layer merges.
            Such a method has a field `heads`.
        moved_by: what gives the `update_frozen` of `make_step` that moves the frozen
            leaves while training, for a method that is not itself without.
    """

    frozen: ClassVar[tuple[str, ...]] = ()
    float32: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[Kind, ...]] = ("dense", "conv", "embedding")
    needs_kernel: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    shared: ClassVar[tuple[str, ...]] = ()
    gated: ClassVar[bool] = False
    moved_by: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # factors that are inherited are not those of a formula that is not
        if "formula" in vars(cls) and "low_rank" not in vars(cls):
            cls.low_rank = Method.low_rank

    @property
    def at_init(self) -> AtInit:
        return "exact"

    @property
    def uses_bias(self) -> bool:
        return False

    @property
    def forms_kernel(self) -> bool:
        """Whether the formula builds an array of the kernel's size (bad in banks)."""
        return False

    @property
    def router_reads(self) -> str:
        """Path of a module whose output, in the frozen model, the gates are of.

        Empty where they are of the layer's own input. The formula is then given gates
        for each token, `[..., heads]`.
        """
        return ""

    def init(self, key: jax.Array, layer: Layer) -> dict[str, jax.Array]:
        """Return fresh adapter arrays of one layer, float32."""
        raise NotImplementedError

    def formula(
        self, p: Params, x: Any, kernel: Any, bias: Any, *, key: jax.Array | None = None
    ) -> Any:
        """Return the whole adapted layer, `[..., out]`, bias included.

        Args:
            p: adapter arrays by name.
            x: `[..., in]` activations, or what stands for them (see `Rows`).
            kernel: frozen `[in, out]` view of the weight.
            bias: `[out]`, or 0.0 where the layer adds it itself or has none.
            key: a PRNG key for dropout; None means deterministic.
        """
        raise NotImplementedError

    def low_rank(self, p: Params, kernel: jax.Array, bias: Any) -> LowRank | None:
        """Return the formula without a key as a low-rank product, if it is one.

        `adapt(..., fused=True)` then runs it as one kernel. None where the settings
        make it something else, dropout among them.

        Args:
            p: adapter arrays by name.
            kernel: frozen `[in, out]`.
            bias: as in `formula`.
        """
        return None

    def penalty(self, p: Params) -> jax.Array | float:
        """Return this layer's term of the loss, a scalar."""
        return 0.0

    def gates(self, p: Params, x: Any) -> Any:
        """Return the gates `[..., heads]` of a `gated` method, float32."""
        raise NotImplementedError

    def check(self, layer: Layer) -> None:
        """Raise ValueError where the settings do not fit the layer."""

    def count(self, layer: Layer) -> int | None:
        """Return the trainable parameters by a closed form, if there is one."""
        return None

    def __call__(
        self,
        p: Params,
        x: jax.Array,
        kernel: jax.Array,
        bias: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        gates: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluate the formula on arrays: `x [..., in]`, `kernel [in, out]`."""
        if x.ndim < 1 or kernel.ndim != 2 or x.shape[-1] != kernel.shape[0]:
            raise ValueError(
                f"{type(self).__name__}: expected x [..., in] and kernel [in, out], "
                f"found x {tuple(x.shape)} and kernel {tuple(kernel.shape)}"
            )
        constant = {} if gates is None else {"gates": gates}
        b = 0.0 if bias is None else bias
        return self.formula(p, x, kernel, b, key=key, **constant)


class OutputMethod(Method):
    r"""An adapter on what a module returns: `init` and one `edit`. It never merges.

    Its rule names the module, `r"blocks_\d+/mlp:output"`. Of a tuple that a module
    returns the first entry is edited, of a mapping the entry `"x"`; likewise of what it
    takes.

    One of kind `"prefix"` gives rows to a module that returns none, `[0, width]`: a
    place that a model keeps for prompts (`models.Prefix`), whose number it then reads
    off the shape.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("output",)

    def edit(self, p: Params, y: Any, x: Any, *, key: Key = None) -> Any:
        """Return what the adapted module returns, of y's shape, or a prefix `[n, out]`.

        Args:
            p: adapter arrays by name.
            y: `[..., out]`, what the module returns.
            x: `[..., in]`, its first argument; None if that is no array, or one of
                other leading axes than y.
            key: a PRNG key for dropout; None means deterministic.
        """
        raise NotImplementedError


class Rows:
    """What a formula sees as `x` on convolutions and embeddings: only `x @ M`.

    `x @ M`, with `M [in, k]`, is the convolution with M seen as `[kh, kw, c_in, k]`,
    or the row lookup in M; the result is `[rows, k]`.
    """

    dtype: Any

    def __matmul__(self, matrix: jax.Array) -> jax.Array:
        raise NotImplementedError

    def dropout(self, rate: float, key: jax.Array) -> Rows:
        raise NotImplementedError


def dropout(x: Any, rate: float, key: jax.Array | None) -> Any:
    """Drop entries of x with probability `rate`, and rescale; without a key, nothing.

    On a convolution the mask falls on its input; on embedding ids there is none.

    >>> dropout(jnp.ones(3), 0.5, None)
    Array([1., 1., 1.], dtype=float32)
    """
    if key is None or rate == 0.0:
        return x
    if isinstance(x, Rows):
        return x.dropout(rate, key)
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def check_rank(method: str, name: str, rank: int, layer: Layer) -> None:
    """Raise ValueError unless `1 <= rank <= min(in, out)`."""
    limit = min(layer.d_in, layer.d_out)
    if not 1 <= rank <= limit:
        raise ValueError(
            f"{layer.path or 'layer'}: {method}({name}={rank}) does not fit a "
            f"[{layer.d_in}, {layer.d_out}] weight: expected 1 <= {name} <= {limit}; "
            f"choose a smaller {name} or leave this layer out of the rules"
        )
