"""One file, one method, one paper; `ALL` is the list of them."""

from peftjax.core.method import Method
from peftjax.methods.adalora import AdaLoRA
from peftjax.methods.composition import Composition
from peftjax.methods.dora import DoRA
from peftjax.methods.full import Full
from peftjax.methods.glora import GLoRA
from peftjax.methods.glora_supernet import GLoRASupernet
from peftjax.methods.hra import HRA
from peftjax.methods.hydra import Hydra
from peftjax.methods.hydralora import HydraLoRA
from peftjax.methods.ia3 import IA3
from peftjax.methods.lokr import LoKr
from peftjax.methods.lora import LoRA
from peftjax.methods.oft import OFT
from peftjax.methods.ssf import SSF

# The names that `peftjax` has too, in the order of the README's table.
__all__ = [
    "LoRA",
    "DoRA",
    "AdaLoRA",
    "LoKr",
    "Hydra",
    "HydraLoRA",
    "GLoRA",
    "GLoRASupernet",
    "HRA",
    "Composition",
    "OFT",
    "IA3",
    "SSF",
    "Full",
]
ALL: tuple[type[Method], ...] = tuple(globals()[name] for name in __all__)
