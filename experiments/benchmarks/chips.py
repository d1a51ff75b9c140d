"""Published figures of TPU chips.

Source: Google Cloud's pages, system architecture, per chip: peak compute in bf16, HBM
capacity (the smaller number where GB and GiB are both printed) and interconnect.
https://docs.cloud.google.com/tpu/docs/v5e, https://docs.cloud.google.com/tpu/docs/v5p,
https://docs.cloud.google.com/tpu/docs/v6e

The interconnect is printed as bidirectional, 400, 1200 and 800 GB/s; a chip receives
half of it. That is what a pod's all-reduce bandwidth comes to for each of its chips
(v5e: 51.2 TB/s / 256, v6e: 102.4 TB/s / 256). A v4 is not here: its page has no
such number, and to libtpu each of its two cores is a device.
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
    "v5e": Chip(197e12, 16e9, 400e9 / 2),
    "v5p": Chip(459e12, 95e9, 1200e9 / 2),
    "v6e": Chip(918e12, 32e9, 800e9 / 2),
}
