"""The torch side of `mrpc_curve`, which starts it: `PYTHON -I mrpc_torch.py FOLDER`.

Reads `settings.json`, the adapter in `start` and `batches.safetensors`; writes
`curves.json` and the trained adapter to `end`.
"""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    get_linear_schedule_with_warmup,
)

COLUMNS = ("input_ids", "attention_mask", "token_type_ids")
LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def build(settings, adapter):
    """Return the pretrained model with the adapter and head of a folder."""
    dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    model = AutoModelForSequenceClassification.from_pretrained(
        settings["base"],
        num_labels=2,
        dtype=torch.float32,
        classifier_dropout=0.0,
        **dict.fromkeys(dropout, 0.0),
    )
    return PeftModel.from_pretrained(model, adapter, is_trainable=True).train()


def train(model, settings, batches):
    """Return loss and gradient norm of every step."""
    trainable = [leaf for leaf in model.parameters() if leaf.requires_grad]
    decay, steps = settings["weight_decay"], settings["steps"]
    optimizer = torch.optim.AdamW(trainable, settings["lr"], weight_decay=decay)
    schedule = get_linear_schedule_with_warmup(optimizer, settings["warmup"], steps)
    losses, norms = [], []
    for number in range(steps):
        columns = {name: batches[f"{number}/{name}"].long() for name in COLUMNS}
        labels = batches[f"{number}/label"].long()
        loss = model(**columns, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable, settings["clip"])
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return {"loss": losses, "gradient_norm": norms}


def main():
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "settings.json").read_text())
    model = build(settings, folder / "start")
    curves = train(model, settings, load_file(folder / "batches.safetensors"))
    model.save_pretrained(folder / "end")
    versions = {name: metadata.version(name) for name in LIBRARIES}
    curves["versions"] = {"python": platform.python_version(), **versions}
    (folder / "curves.json").write_text(json.dumps(curves))


if __name__ == "__main__":
    main()
