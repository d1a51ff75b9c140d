"""The order of the examples: one permutation per epoch, a function of the seed.

The permutation is a Feistel network on the bits of the row (four rounds of Simon, arXiv
and eprint 2013/404), repeated until the result is a row ("cycle walking"); its keys are
drawn as C++'s `std::seed_seq` does. It is the order that `grain` gives for
`MapDataset.range(n).seed(seed).shuffle()`, of all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

_ROUNDS = 4
# Of the smallest block.
_BITS = 16
_MASK = 2**32 - 1


def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """Return the rows `0 .. rows - 1` in the order of an epoch, int64 `[rows]`.

    >>> permutation(5, seed=0, epoch=0), permutation(5, seed=0, epoch=1)
    (array([1, 2, 4, 0, 3]), array([0, 3, 1, 4, 2]))
    """
    found = np.arange(rows, dtype=np.uint64)
    if rows < 2:
        return found.astype(np.int64)
    drawn = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    keys = _keys((drawn + epoch) & _MASK)
    bits = int(np.ceil(np.log2(rows - 1)))
    word = max(bits + bits % 2, _BITS) // 2
    network = _tabulated(keys) if 2 * word == _BITS else partial(_encrypted, keys, word)
    outside, values = np.arange(rows), found
    while len(outside):
        values = found[outside] = network(values)
        left = values >= rows
        outside, values = outside[left], values[left]
    return found.astype(np.int64)


def _tabulated(keys: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the network on 16 bits as a table: few rows walk long cycles there."""
    table = _encrypted(keys, _BITS // 2, np.arange(2**_BITS, dtype=np.uint64))
    # As the network itself does, cut the high bit of the row that 16 bits do not hold.
    return lambda rows: table[rows & np.uint64(2**_BITS - 1)]


def _encrypted(keys: list[int], word: int, rows: np.ndarray) -> np.ndarray:
    mask = np.uint64(2**word - 1)

    def rotated(half: np.ndarray, by: int) -> np.ndarray:
        return ((half << np.uint64(by)) | (half >> np.uint64(word - by))) & mask

    left, right = (rows >> np.uint64(word)) & mask, rows & mask
    for key in keys:
        mixed = (rotated(right, 1) & rotated(right, 8)) ^ rotated(right, 2)
        left, right = right, left ^ mixed ^ (np.uint64(key) & mask)
    return (left << np.uint64(word)) | right


def _keys(seed: int) -> list[int]:
    """Return what `std::seed_seq{seed}` generates for one word per round."""
    n, seeds = _ROUNDS, [seed]
    tail = (n - 1) // 2
    near = (n - tail) // 2
    far = near + tail
    state = [0x8B8B8B8B] * n

    def mixed(value: int, factor: int) -> int:
        value &= _MASK
        return factor * (value ^ (value >> 27)) & _MASK

    for k in range(n):
        here, p, q = k % n, (k + near) % n, (k + far) % n
        first = mixed(state[here] ^ state[p] ^ state[(k - 1) % n], 1664525)
        added = len(seeds) if k == 0 else here + (seeds[k - 1] if k <= 1 else 0)
        second = (first + added) & _MASK
        state[p] = (state[p] + first) & _MASK
        state[q] = (state[q] + second) & _MASK
        state[here] = second
    for k in range(n, 2 * n):
        here, p, q = k % n, (k + near) % n, (k + far) % n
        first = mixed(state[here] + state[p] + state[(k - 1) % n], 1566083941)
        second = (first - here) & _MASK
        state[p] ^= first
        state[q] ^= second
        state[here] = second
    return state
