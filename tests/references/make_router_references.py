"""Make files of the torch library's X-LoRA (peft 0.21, on a CPU), and its logits.

    pip install torch transformers peft
    python tests/references/make_router_references.py tests/files

For the tiny Llama of `tests/files` it writes `torch_xlora/NAME`: a router that is one
for all layers, or one for each and without a softmax, two LoRA modules of ranks 2 and 3
in folders below, and as `io.npz` the logits of what `PeftModel.from_pretrained` makes
of these files. The release's own `save_pretrained` loses the router, whose names have
the number of a module in them; it is written from the model's state.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import save_file

CASES = {
    "share": {},
    "each": {"layerwise_scalings": True, "enable_softmax": False},
}
TASK = {"task_type": "CAUSAL_LM"}


def net():
    base = "peft_checkpoints/tiny_llama/base"
    model = transformers.LlamaForCausalLM.from_pretrained(base, use_cache=False)
    model.name_or_path = "tiny_llama"
    return model


def main(root):
    os.chdir(root)  # the library reads modules by the paths that a file names
    for number, (name, settings) in enumerate(CASES.items()):
        torch.manual_seed(number)
        folder = Path("torch_xlora", name)
        shutil.rmtree(folder, ignore_errors=True)
        adapters = {str(i): str(folder / str(i)) for i in range(2)}
        for rank, place in zip((2, 3), adapters.values()):
            config = peft.LoraConfig(
                r=rank, lora_alpha=5, target_modules=["q_proj", "down_proj"], **TASK
            )
            module = peft.get_peft_model(net(), config)
            for key, value in module.named_parameters():
                if "lora_" in key:
                    torch.nn.init.normal_(value, std=0.2)
            module.save_pretrained(place)
            Path(place, "README.md").unlink()
        config = peft.XLoraConfig(hidden_size=32, adapters=adapters, **settings, **TASK)
        config.base_model_name_or_path, config.inference_mode = "tiny_llama", True
        router = peft.get_peft_model(net(), config).state_dict()
        router = {key: v for key, v in router.items() if "xlora_classifier" in key}
        config.save_pretrained(folder)
        save_file(router, folder / "adapter_model.safetensors")
        ids = torch.randint(5, 96, (2, 4))
        with torch.no_grad():
            model = peft.PeftModel.from_pretrained(net(), folder)
            logits, base = model(input_ids=ids).logits, net()(input_ids=ids).logits
        np.savez_compressed(folder / "io.npz", ids=ids.numpy(), logits=logits.numpy())
        print(name, tuple(logits.shape), float((logits - base).abs().max()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
