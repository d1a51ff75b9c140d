"""What a compiled program's text says of its collectives, loops counted.

The text is XLA's after scheduling. A computation counts as often as the loops around it
run: a loop that `lax.scan` made counts from 0 to a constant of its condition.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """Collectives of one kind and one result.

    Attributes:
        kind: such as `all-gather`.
        dtype: of what comes out.
        shape: of what comes out on one chip; of several together, the largest.
        bytes: of all that one of them gives to a chip.
        asynchronous: it runs while the chip computes.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    asynchronous: bool


def collectives(text: str) -> Counter[Collective]:
    """Return how often each collective runs in one execution of a program."""
    bodies, entry = _computations(text)
    times: Counter[str] = Counter()
    _count(entry, 1, bodies, times)
    # One that runs beside others is spelt out in each of them, with one channel.
    found: dict[Any, tuple[Collective, int]] = {}
    for name, lines in bodies.items():
        for number, line in enumerate(lines):
            if not times[name] or (match := _COLLECTIVE.search(line)) is None:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[1] if channel else (name, number)
            asynchronous = match[3] is not None or "async_collective" in name
            asynchronous |= any("AsyncCollective" in other for other in lines)
            one = _read(match[2], match[1], asynchronous)
            if key in found:
                earlier, often = found[key]
                asynchronous |= earlier.asynchronous
                often = max(often, times[name])
                found[key] = earlier._replace(asynchronous=asynchronous), often
            else:
                found[key] = one, times[name]
    total: Counter[Collective] = Counter()
    for one, often in found.values():
        total[one] += often
    return total


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if (head := _HEAD.match(line)) is not None:
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None:
            current.append(line)
    return bodies, entry


def _count(
    name: str, often: int, bodies: dict[str, list[str]], times: Counter[str]
) -> None:
    times[name] += often
    for line in bodies.get(name, ()):
        runs = often
        if " while(" in line:
            runs *= _trips(line, bodies)
        for called in _CALLED.findall(line):
            _count(called, runs, bodies, times)


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    if known := re.search(r'known_trip_count\D*"?(\d+)', line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = bodies[condition[1]] if condition else []
    numbers = [re.search(r"= s32\[\]\S* constant\((\d+)\)", x) for x in lines]
    found = [int(number[1]) for number in numbers if number]
    if len(found) != 1:
        raise ValueError(f"a loop whose length its text does not say: {line[:200]}")
    return found[0]


def _read(kind: str, result: str, asynchronous: bool) -> Collective:
    arrays = list(_arrays(result))
    if asynchronous and result.startswith("(") and kind == "all-gather":
        arrays = arrays[1:2]  # what goes in, what comes out, and semaphores
    dtype, shape = max(arrays, key=lambda array: prod(array[1]))
    size = sum(BYTES.get(d, 4) * prod(s) for d, s in arrays)
    return Collective(kind, dtype, shape, size, asynchronous)


def _arrays(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, sizes in _ARRAY.findall(text):
        if dtype in BYTES:
            yield dtype, tuple(int(size) for size in sizes.split(",") if size)
