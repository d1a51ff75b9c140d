"""The table of methods in the torch library's files, or why one has no place there."""

from __future__ import annotations

from peftjax import methods
from peftjax.core.method import Method
from peftjax.hub.torch.codec import Codec
from peftjax.hub.torch.codecs import (
    adalora,
    boft,
    c3a,
    delora,
    fourierft,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    loha,
    lokr,
    lora,
    miss,
    oft,
    randlora,
    road,
    shira,
    trainable_tokens,
    vera,
)

CODECS: dict[type[Method], Codec | str] = {
    methods.LoRA: lora.CODEC,
    methods.DoRA: lora.DORA,
    methods.AdaLoRA: adalora.CODEC,
    methods.PiSSA: lora.OFFSET,
    methods.OLoRA: lora.OFFSET,
    methods.LoRAFA: lora.CODEC,
    methods.LoKr: lokr.CODEC,
    methods.LoHa: loha.CODEC,
    methods.MiSS: miss.CODEC,
    methods.DeLoRA: delora.CODEC,
    methods.HiRA: hira.CODEC,
    methods.GraLoRA: gralora.CODEC,
    methods.FourierFT: fourierft.CODEC,
    methods.C3A: c3a.CODEC,
    methods.SHiRA: shira.CODEC,
    methods.FacT: "it has no factors that layers share and train",
    methods.RepAdapter: "it has no linear adapter in front of a layer; "
    "peftjax.to_lora makes a LoRA of it",
    methods.LoRAXS: "it has no trained matrix between A and B; "
    "peftjax.to_lora makes a LoRA of it",
    methods.VeRA: vera.CODEC,
    methods.RandLoRA: randlora.CODEC,
    methods.Hydra: "it has no branch that reads a layer's output",
    methods.HydraLoRA: "it has no router over heads that share one A",
    methods.GLoRA: glora.CODEC,
    methods.GLoRASupernet: "it has no supernet; peftjax.to_glora fixes a structure",
    methods.HRA: hra.CODEC,
    methods.Composition: "it has no weighted average of modules in one file; "
    "peftjax.convert.combine makes one LoRA of them",
    methods.XLoRA: "its router and modules lie apart; see hub.torch.routers",
    methods.OFT: oft.CODEC,
    methods.BOFT: boft.CODEC,
    methods.RoAd: road.CODEC,
    methods.IA3: ia3.CODEC,
    methods.Bottleneck: "it has no adapters on what a module returns",
    methods.Compacter: "it has no adapters on what a module returns",
    methods.LoReFT: "it has no adapters on what a module returns",
    methods.VPT: "it has no prompts of images",
    methods.PrefixTuning: "its prefix is of no layer; see hub.torch.prefixes",
    methods.SSF: "it has no scale and shift of a layer's output",
    methods.TrainableTokens: trainable_tokens.CODEC,
    methods.Full: "it saves whole modules and biases instead, beside another method",
}
# Which codec reads a file: of several with one name the first, which knows the others.
READERS = {
    codec.peft_type: codec
    for codec in reversed(CODECS.values())
    if isinstance(codec, Codec)
}
FIELDS = {name: codec.fields for name, codec in READERS.items()}


def codec_of(method: Method) -> Codec:
    """Return the codec of a method that a file holds."""
    codec = CODECS[type(method)]
    assert isinstance(codec, Codec)
    return codec
