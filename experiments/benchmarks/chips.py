"""Published figures of TPU chips.

Source: Google Cloud's pages "TPU v5e" and "TPU v5p"
(https://cloud.google.com/tpu/docs/v5e, https://cloud.google.com/tpu/docs/v5p), system
architecture: peak compute in bf16, HBM capacity and interchip interconnect bandwidth,
per chip.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip.

    Attributes:
        flops: peak bf16 FLOP per second.
        memory: bytes of high-bandwidth memory.
        links: bytes per second that all links of a chip together receive.
    """

    flops: float
    memory: float
    links: float


CHIPS = {
    "v5e": Chip(197e12, 16e9, 1600e9 / 8),
    "v5p": Chip(459e12, 95e9, 4800e9 / 8),
}
