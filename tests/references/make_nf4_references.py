"""Codes of bitsandbytes for `tests/quantised`: `python make_nf4_references.py FOLDER`.

Run under a Python with torch and bitsandbytes (0.48 or later).
"""

import sys
from pathlib import Path

import bitsandbytes.functional as F
import numpy as np
import torch

torch.manual_seed(0)
weight = torch.randn(16, 128)
found = {"kernel": weight.numpy().T}
for name, double in (("single", False), ("double", True)):
    codes, state = F.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=double
    )
    found[f"{name}_codes"] = codes.numpy().ravel()
    found[f"{name}_scales"] = state.absmax.numpy()
    found[name] = F.dequantize_4bit(codes, state).numpy().T
found |= {"base": state.state2.absmax.numpy(), "offset": state.offset.numpy()}
np.savez_compressed(Path(sys.argv[1]) / "nf4_bitsandbytes.npz", **found)
