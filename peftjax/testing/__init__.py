"""`check_method`: every invariant of a method, for ours and for a user's own.

One small model holds all kinds of layer: dense with and without bias, 3-D attention
kernels, a convolution, an embedding with a tied output, scanned and rematerialised
blocks.
"""

from peftjax.core.method import Method, OutputMethod
from peftjax.testing.case import Case, linen_case, nnx_case, perturb
from peftjax.testing.invariants import (
    counts,
    deterministic,
    error,
    fast,
    gradients,
    in_bfloat16,
    merged,
    names,
    reached,
    refusals,
    saved,
    stacked,
    starts,
)
from peftjax.testing.outputs import edits, half_precision, never_merges

__all__ = ["Case", "check_method", "error", "linen_case", "nnx_case", "perturb"]

CHECKS = (
    refusals,
    fast,
    counts,
    names,
    starts,
    merged,
    gradients,
    stacked,
    deterministic,
    saved,
    in_bfloat16,
)
OF_OUTPUTS = (
    never_merges,
    counts,
    names,
    starts,
    edits,
    reached,
    stacked,
    deterministic,
    saved,
    half_precision,
)


def check_method(method: Method) -> list[str]:
    """Check every invariant of a method on a model with every kind of layer.

    Args:
        method: with settings small enough for weights of 16 by 16 (rank at most 16);
            let alpha differ from the rank, lest a scale of 1 hides a mistake.

    Returns:
        The names of the invariants, all of which hold.

    Raises:
        AssertionError: one does not; the message says which, where and by how much.

    >>> from peftjax.methods.lora import LoRA
    >>> check_method(LoRA(rank=4, alpha=7.0))[:3]
    ['refusals', 'fast', 'counts']
    """
    case = linen_case(method)
    checks = OF_OUTPUTS if isinstance(method, OutputMethod) else CHECKS
    for check in checks:
        check(case)
    return [check.__name__ for check in checks]
