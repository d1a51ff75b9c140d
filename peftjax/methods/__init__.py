"""One file, one method, one paper; `ALL` is the list of them."""

from peftjax.core.method import Method
from peftjax.methods.adalora import AdaLoRA
from peftjax.methods.boft import BOFT
from peftjax.methods.bottleneck import Bottleneck
from peftjax.methods.c3a import C3A
from peftjax.methods.compacter import Compacter
from peftjax.methods.composition import Composition
from peftjax.methods.delora import DeLoRA
from peftjax.methods.dora import DoRA
from peftjax.methods.fact import FacT
from peftjax.methods.fourierft import FourierFT
from peftjax.methods.full import Full
from peftjax.methods.glora import GLoRA
from peftjax.methods.glora_supernet import GLoRASupernet
from peftjax.methods.gralora import GraLoRA
from peftjax.methods.hira import HiRA
from peftjax.methods.hra import HRA
from peftjax.methods.hydra import Hydra
from peftjax.methods.hydralora import HydraLoRA
from peftjax.methods.ia3 import IA3
from peftjax.methods.loha import LoHa
from peftjax.methods.lokr import LoKr
from peftjax.methods.lora import LoRA
from peftjax.methods.lorafa import LoRAFA
from peftjax.methods.loraxs import LoRAXS
from peftjax.methods.loreft import LoReFT
from peftjax.methods.miss import MiSS
from peftjax.methods.oft import OFT
from peftjax.methods.olora import OLoRA
from peftjax.methods.pissa import PiSSA
from peftjax.methods.prefix_tuning import PrefixTuning
from peftjax.methods.randlora import RandLoRA
from peftjax.methods.repadapter import RepAdapter
from peftjax.methods.road import RoAd
from peftjax.methods.shira import SHiRA
from peftjax.methods.ssf import SSF
from peftjax.methods.trainable_tokens import TrainableTokens
from peftjax.methods.vera import VeRA
from peftjax.methods.vpt import VPT
from peftjax.methods.xlora import XLoRA

# The names that `peftjax` has too, in the order of the site's table.
__all__ = [
    "LoRA",
    "DoRA",
    "AdaLoRA",
    "PiSSA",
    "OLoRA",
    "LoRAFA",
    "LoKr",
    "LoHa",
    "MiSS",
    "DeLoRA",
    "HiRA",
    "GraLoRA",
    "FourierFT",
    "C3A",
    "SHiRA",
    "FacT",
    "RepAdapter",
    "LoRAXS",
    "VeRA",
    "RandLoRA",
    "Hydra",
    "HydraLoRA",
    "GLoRA",
    "GLoRASupernet",
    "HRA",
    "Composition",
    "XLoRA",
    "OFT",
    "BOFT",
    "RoAd",
    "IA3",
    "SSF",
    "TrainableTokens",
    "Bottleneck",
    "Compacter",
    "LoReFT",
    "VPT",
    "PrefixTuning",
    "Full",
]
ALL: tuple[type[Method], ...] = tuple(globals()[name] for name in __all__)
