"""What a plan costs: FLOPs of one formula, and the table of all sites."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from html import escape
from math import prod
from textwrap import wrap
from typing import Any

import jax
import jax.numpy as jnp

from peftjax.core.gates import foreign_gates
from peftjax.core.jaxpr import walk
from peftjax.core.method import Layer, Method
from peftjax.core.site import Site

COLUMNS = 110
_HEADER = ("path", "kind", "[in, out]", "method", "trainable", "+FLOPs", "runs")


def flops(method: Method, layer: Layer, rows: int, names: dict[str, Any]) -> int:
    """Count the FLOPs that a formula adds to the frozen layer on `rows` rows of x."""
    lookup = layer.kind == "embedding"
    x = jax.ShapeDtypeStruct((rows, layer.d_in), jnp.float32)
    kernel = jax.ShapeDtypeStruct((layer.d_in, layer.d_out), jnp.float32)
    # what is read elsewhere costs no layer anything
    gates = foreign_gates(method)
    formula = lambda x, p, k: method.formula(p, x, k, 0.0, **gates)  # noqa: E731
    jaxpr = jax.make_jaxpr(formula)(x, names, kernel)
    inputs = [True, *[False] * (len(names) + 1)]
    total = dots(jaxpr, inputs if lookup else None)
    return total - (0 if lookup else 2 * rows * layer.d_in * layer.d_out)


def dots(
    jaxpr: Any, ids: Sequence[bool] | None = None, within: str | None = None
) -> int:
    """Count the FLOPs of the dots of a jaxpr, but of those whose first input is ids.

    Given a name, of those that are within a compiled function of that name.
    """
    total, loops, inside_of = 0, 1, within is None

    def count(eqn: Any, is_x: list[Any]) -> list[Any]:
        nonlocal total, loops, inside_of
        if eqn.primitive.name == "dot_general" and not is_x[0] and inside_of:
            (contract, _), _ = eqn.params["dimension_numbers"]
            inner = prod(eqn.invars[0].aval.shape[axis] for axis in contract)
            total += 2 * inner * eqn.outvars[0].aval.size * loops
        outside, loops = loops, loops * int(eqn.params.get("length", 1))
        before, inside_of = inside_of, inside_of or eqn.params.get("name") == within
        for inside in (eqn.params.get("jaxpr"), eqn.params.get("call_jaxpr")):
            if inside is not None:
                walk(inside, [False] * len(eqn.invars), {}, count, count)
        loops, inside_of = outside, before
        return [False] * len(eqn.outvars)

    walk(jaxpr, ids or [False] * len(jaxpr.in_avals), {}, count, count)
    return total


def summary(sites: Sequence[Site], parameters: int) -> str:
    """Return a table of sites, with those that differ only in a number as one."""
    groups = _folded(sites)
    rows = [_HEADER, *(_row(path, members) for path, members in groups.items())]
    widths = [max(map(len, column)) for column in zip(*rows)]
    # settings give way first, then the path
    for narrow, least in (3, 16), (0, 24):
        excess = sum(widths) + 2 * len(widths) - 2 - COLUMNS
        widths[narrow] -= min(max(excess, 0), max(widths[narrow] - least, 0))
    lines = [
        "  ".join(_clip(c, w).ljust(w) for c, w in zip(row, widths)).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    below = [*_notes(groups), _totals(sites, parameters)]
    return "\n".join([lines[0], rule, *lines[1:], rule, *below])


def html(sites: Sequence[Site], parameters: int) -> str:
    """Return the same table for a notebook."""
    groups = _folded(sites)
    rows = [_row(path, members) for path, members in groups.items()]
    cells = [[f"<td>{escape(cell)}</td>" for cell in row] for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in _HEADER)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    below = [*_notes(groups), _totals(sites, parameters)]
    lines = "".join(f"<p>{escape(line)}</p>" for line in below)
    return f"<table><tr>{head}</tr>{body}</table>{lines}"


def _folded(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Group sites of one form whose paths differ in numbers that run through a grid."""
    alike: dict[Any, list[Site]] = {}
    for site in sites:
        facts = site.kind, site.stack, site.d_in, site.d_out, str(site.method)
        facts = *facts, site.trainable, site.flops, site.reason, site.notes
        alike.setdefault((re.sub(r"\d+", "#", site.path), facts), []).append(site)
    groups: dict[str, list[Site]] = {}
    for (pattern, _), members in alike.items():
        numbers = [[int(n) for n in re.findall(r"\d+", site.path)] for site in members]
        values = [sorted(set(column)) for column in zip(*numbers)]
        if prod(map(len, values)) == len(members):
            for column in values:
                pattern = pattern.replace("#", _range(column), 1)
            groups[pattern] = members
        else:
            groups.update({site.path: [site] for site in members})
    return groups


def _range(values: Sequence[int]) -> str:
    """Return the text of numbers: `3`, `{0..2}` or `{0,2}`."""
    if len(values) == 1:
        return str(values[0])
    whole = len(values) > 2 and values[-1] - values[0] == len(values) - 1
    text = f"{values[0]}..{values[-1]}" if whole else ",".join(map(str, values))
    return "{" + text + "}"


def _row(path: str, members: Sequence[Site]) -> tuple[str, ...]:
    site = members[0]
    sizes = [site.d_in, site.d_out] if site.d_out else list(site.shape)
    return (
        path,
        site.kind,
        "".join(f"{n} x " for n in site.stack) + str(sizes),
        brief(site.method),
        f"{sum(member.trainable for member in members):,}",
        f"{sum(member.flops for member in members):,}",
        "fast" if site.fast else "merged",
    )


def brief(method: Method) -> str:
    """Return a method with the settings that are not the default."""
    settings = {field.name: getattr(method, field.name) for field in fields(method)}
    defaults = {field.name: field.default for field in fields(method)}
    told = [f"{n}={v!r}" for n, v in settings.items() if v != defaults[n]]
    return f"{type(method).__name__}({', '.join(told)})"


def _clip(text: str, width: int) -> str:
    """Shorten a text in its middle."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - width + left + 1 :]}"


def _notes(groups: dict[str, list[Site]]) -> list[str]:
    lines: list[str] = []
    for path, (site, *_) in groups.items():
        notes = site.notes if site.fast else (f"merged: {site.reason}", *site.notes)
        for note in notes:
            text = f"{path}: {note}"
            lines += wrap(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def trainable(sites: Sequence[Site]) -> dict[str, int]:
    """Return the trainable parameters by path; those that all share under `""`."""
    shared = {
        name: prod(shape)
        for site in sites
        for name, shape in site.arrays
        if name in site.method.shared and name not in site.method.frozen
    }
    own = {site.path: site.trainable for site in sites}
    return {**own, "": sum(shared.values())} if shared else own


def _totals(sites: Sequence[Site], parameters: int) -> str:
    total = sum(trainable(sites).values())
    return (
        f"{len(sites)} sites, {sum(not site.fast for site in sites)} merged; "
        f"{total:,} trainable parameters, "
        f"{100 * total / max(parameters, 1):.3f}% of {parameters:,}; "
        f"{sum(site.flops for site in sites):,} FLOPs per example added"
    )
