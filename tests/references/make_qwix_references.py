"""What qwix makes of a kernel, for `tests/quantised`: `make_qwix_references.py FOLDER`.

Run under a Python with qwix (0.1.8 here). Nothing of peftjax is used.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import qwix

kernel = np.random.default_rng(0).normal(size=(128, 16)).astype(np.float32)
found = {"kernel": kernel}
for name in ("nf4", "int8", "int4"):
    array = jax.numpy.asarray(kernel)
    coded = qwix.quantize(array, name, channelwise_axes=[1], tiled_axes={0: 64})
    found[name] = np.asarray(qwix.dequantize(coded))
np.savez_compressed(Path(sys.argv[1]) / "qwix.npz", **found)
