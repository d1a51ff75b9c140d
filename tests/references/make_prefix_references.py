"""Make prefixes of the torch library `peft` and what models compute with them.

    pip install torch transformers peft
    python tests/references/make_prefix_references.py tests/files

For the tiny Llama and BERT of `tests/files` it writes `torch_prefix/NAME`: the
library's files of a prefix, and inputs, mask and outputs as `io.npz`. Llama's outputs
are the library's own, gradients of the prefix included. Its release 0.21 does not run a
BERT of transformers 5, which no longer names the argument that it looks for; there its
prefix is handed to the encoder of transformers as the cache.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

LENGTH = 3


def cases(root):
    """Yield name, torch model and task of each reference."""
    bases = root / "peft_checkpoints"
    llama, bert = bases / "tiny_llama/base", bases / "tiny_bert/base"
    causal = transformers.LlamaForCausalLM.from_pretrained(llama)
    yield "llama", causal, {"task_type": "CAUSAL_LM"}
    causal = transformers.LlamaForCausalLM.from_pretrained(llama)
    network = {"prefix_projection": True, "encoder_hidden_size": 5}
    yield "llama_network", causal, {"task_type": "CAUSAL_LM", **network}
    encoder = transformers.BertForSequenceClassification.from_pretrained(bert)
    yield "bert", encoder, {"task_type": "SEQ_CLS"}


def output(adapted, given):
    """Return what the adapted model computes."""
    if adapted.config.model_type != "bert":
        return adapted(**given).logits
    rows = len(given["input_ids"])
    mask = torch.cat([torch.ones(rows, LENGTH), given["attention_mask"]], dim=1)
    bert = adapted.get_base_model().bert
    return bert(
        given["input_ids"], attention_mask=mask, cache=adapted.get_prompt(rows)
    ).last_hidden_state


def main(root):
    for number, (name, model, settings) in enumerate(cases(root)):
        torch.manual_seed(number)
        config = peft.PrefixTuningConfig(num_virtual_tokens=LENGTH, **settings)
        adapted = peft.get_peft_model(model, config).eval()
        rng = np.random.default_rng(number)
        ids = rng.integers(5, model.config.vocab_size, (2, 6))
        mask = np.ones_like(ids)
        mask[1, 4:] = 0
        given = {"input_ids": ids, "attention_mask": mask}
        torch_given = {key: torch.from_numpy(value) for key, value in given.items()}
        found = output(adapted, torch_given)
        cotangent = rng.normal(size=found.shape).astype(np.float32)
        cotangent *= mask[..., None]
        (found * torch.from_numpy(cotangent)).sum().backward()
        gradient = adapted.prompt_encoder["default"].embedding.weight.grad
        folder = root / "torch_prefix" / name
        shutil.rmtree(folder, ignore_errors=True)
        model.name_or_path = f"tiny_{name.partition('_')[0]}"
        config.base_model_name_or_path = model.name_or_path
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink()
        arrays = {
            "output": found.detach().numpy(),
            "cotangent": cotangent,
            "gradient": gradient.numpy(),
            **given,
        }
        np.savez_compressed(folder / "io.npz", **arrays)
        print(name, tuple(found.shape), float(found.abs().max()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
