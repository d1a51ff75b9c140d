"""Gates of what a module returns in a pass of the frozen model, before the adapted one.

The pass runs on the call's own arguments and carries no gradient; what of it no gate
needs, such as the head, the compiler leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from peftjax.core import arrays, paths
from peftjax.core.jaxpr import Call, opened
from peftjax.core.run import run
from peftjax.core.site import Adapters, Given, Site
from peftjax.core.taps import Seen, tapped


def routed(
    sites: Sequence[Site],
    call: Call,
    leaves: Sequence[Any],
    adapters: Adapters,
    given: Mapping[str, Given],
    runner: Callable[..., Any] | None = None,
) -> Mapping[str, Given]:
    """Return what is given, with the gates `[*stack, *tokens, heads]` of such sites.

    Sites that are given gates keep them.

    Raises:
        ValueError: the model calls no module of the path that a method reads, or calls
            it in a loop.
    """
    reading = [
        site
        for site in sites
        if site.method.router_reads and given.get(site.path, Given()).gates is None
    ]
    if not reading:
        return given
    read = {site.method.router_reads for site in reading}
    outputs = _outputs(call, leaves, read, runner)
    found = dict(given)
    for site in reading:
        own = arrays.of_site(site, adapters, given)
        h = outputs[site.method.router_reads]
        gates = site.stacked(lambda p, s=site, h=h: s.method.gates(p, h))(own.params)
        found[site.path] = replace(found.get(site.path, Given()), gates=gates)
    return found


def _outputs(
    call: Call,
    leaves: Sequence[Any],
    read: Collection[str],
    runner: Callable[..., Any] | None,
) -> dict[str, jax.Array]:
    """Return what the frozen model's modules return, by path."""
    seen: dict[str, jax.Array] = {}

    def look(module: Seen, y: jax.Array, x: Any) -> jax.Array:
        seen[module.path] = y
        return y

    def apply_fn(*args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        with tapped(look):
            call.apply_fn(*args, **kwargs)
        if absent := sorted(set(read) - seen.keys()):
            near = ", ".join(paths.nearest(absent[0], list(seen), 3))
            raise ValueError(
                f"gates read what the module {absent[0]!r} returns, which the model "
                f"does not call; expected the path of a module, nearest: {near}"
            )
        return {path: seen[path] for path in read}

    jaxpr, structure = replace(call, apply_fn=apply_fn).trace(leaves)
    # what the body of a loop made has escaped from it as a constant without a value
    if any(const is seen[path] for const in opened(jaxpr)[1] for path in read):
        raise ValueError(
            f"gates read what a module returns, of {sorted(read)}; expected modules "
            "outside of loops and recomputation, found one within"
        )
    found = run(jaxpr, [], leaves, call.dynamic, {}, {}, None, runner=runner)
    return jax.lax.stop_gradient(jax.tree.unflatten(structure, found))
