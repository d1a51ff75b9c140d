"""Make the outputs and gradients of the torch library's X-LoRA (peft 0.21, on a CPU).

    pip install torch peft
    python tests/references/make_xlora_references.py tests/files/goldens

A model of two layers, two LoRA modules of ranks 2 and 3 on both, and a router that is
one for all layers, one for each, or one without a softmax. Of every case, by its name:
the router, logits, and the router's gradient; once, the model and the modules.
"""

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import torch

WIDTH, VOCAB = 6, 11
CASES = {
    "share": {},
    "each": {"layerwise_scalings": True},
    "linear": {"layerwise_scalings": True, "enable_softmax": False},
}


class Config(dict):
    use_cache = tie_word_embeddings = False


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = Config()
        # the library asks for layers in a module of this name
        self.model = torch.nn.ModuleDict(
            {
                "embed": torch.nn.Embedding(VOCAB, WIDTH),
                "first": torch.nn.Linear(WIDTH, WIDTH),
                "second": torch.nn.Linear(WIDTH, WIDTH),
            }
        )
        self.head = torch.nn.Linear(WIDTH, 4)

    def forward(self, input_ids=None, **_):
        x = self.model["embed"](input_ids)
        h = self.model["second"](torch.tanh(self.model["first"](x)))
        return SimpleNamespace(hidden_states=[x, h], logits=self.head(torch.tanh(h)))


def net():
    torch.manual_seed(0)
    return Net()


def main(folder):
    ids = torch.tensor([[1, 2, 3], [4, 10, 0]])
    base = net().state_dict().items()
    arrays = {f"base/{k.removeprefix('model.')}": v for k, v in base} | {"ids": ids}
    with tempfile.TemporaryDirectory() as where:
        for rank in (2, 3):
            config = peft.LoraConfig(
                r=rank, lora_alpha=5, target_modules=["first", "second"]
            )
            module = peft.get_peft_model(net(), config)
            for name, value in module.named_parameters():
                if "lora_" in name:
                    torch.nn.init.normal_(value)
                    short = name.removeprefix("base_model.model.model.")
                    arrays[f"{rank}/{short.replace('.default', '')}"] = value
            module.save_pretrained(f"{where}/{rank}")
        for name, settings in CASES.items():
            adapters = {"0": f"{where}/2", "1": f"{where}/3"}
            config = peft.XLoraConfig(hidden_size=WIDTH, adapters=adapters, **settings)
            model = peft.get_peft_model(net(), config)
            logits = model(input_ids=ids).logits
            (logits**2).sum().backward()
            arrays[f"{name}/logits"] = logits
            for key, value in model.named_parameters():
                if "classifier" in key:
                    arrays[f"{name}/{key.rpartition('.')[2]}"] = value
                    arrays[f"{name}/d_{key.rpartition('.')[2]}"] = value.grad
    found = {key: value.detach().numpy() for key, value in arrays.items()}
    np.savez_compressed(folder / "xlora.npz", **found)
    print({key: value.shape for key, value in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
