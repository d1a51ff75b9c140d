"""Several texts in one row, so that nothing is computed on padding.

Rows are packed once, by grain's best-fit packer; the data pipeline then shuffles whole
rows as it shuffles examples, and resumes as exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from peftjax.data.chat import Chats

BINS = 64  # rows that are open at a time


def pack(
    chats: Chats, length: int, pad: int, *, bins: int = BINS
) -> dict[str, np.ndarray]:
    """Return rows of several texts, as `peftjax.data.pipeline` takes them.

    Args:
        chats: of `peftjax.data.chat.encode`.
        length: tokens of a row; no text is longer.
        pad: id of the padding token.
        bins: how many rows are filled at a time; more fill them better.

    Returns:
        `input_ids [P, length]`; `segment_ids`, 1, 2, ... for the texts of a row and 0
        for padding; `token_mask`, 1 where a token is learned. All int32. A model that
        takes `segment_ids` keeps the texts apart, and counts positions anew.

    Raises:
        ImportError: grain is absent.
        ValueError: a text is longer than a row.

    >>> starts = np.array([0, 3, 4, 6])
    >>> chats = Chats(np.arange(6), np.ones(6), starts, np.arange(3), 0, 0)
    >>> pack(chats, 4, pad=9, bins=2)["input_ids"].tolist()
    [[0, 1, 2, 3], [4, 5, 9, 9]]
    """
    import grain

    longest = int(chats.lengths.max(initial=0))
    if longest > length or bins < 1:
        raise ValueError(
            f"length={length}, bins={bins}: expected rows of at least the longest "
            f"text, {longest} tokens, and at least one of them"
        )

    def text(number: int) -> dict[str, np.ndarray]:
        own = slice(chats.starts[number], chats.starts[number + 1])
        # The mask is a feature of its own, which the packer pads with 0.
        return {
            "ids": np.asarray(chats.ids[own], np.int32),
            "mask": np.asarray(chats.learned[own], np.int32),
        }

    source: Any = grain.MapDataset.range(len(chats)).map(text).to_iter_dataset()
    packed = grain.experimental.BestFitPackIterDataset(
        source,
        length_struct={"ids": length, "mask": length},
        num_packing_bins=bins,
        shuffle_bins=False,
        padding_struct={"ids": pad, "mask": 0},
    )
    rows = list(packed)
    return {
        "input_ids": np.stack([row["ids"] for row in rows]),
        "segment_ids": np.stack([row["ids_segment_ids"] for row in rows]),
        "token_mask": np.stack([row["mask"] for row in rows]),
    }
