"""Make tiny random T5s with `transformers`, and record what they compute.

    pip install torch transformers
    python tests/references/make_t5_references.py make tests/files/models
    python tests/references/make_t5_references.py check FOLDER

`make` writes `t5` (v1.0: ReLU, tied, scaled) and `flan_t5` (v1.1: gated, with an output
layer of its own): `config.json`, `model.safetensors`, `io.npz` (sources, targets,
masks, logits, the loss of labels, greedy tokens), and `t5/buckets.npz`. `check` loads
with `transformers` every model in a folder, each beside its `io.npz`, and prints how
far its logits are from the recorded ones: run it on what `peftjax.models.save` wrote.
Nothing of peftjax is used.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from safetensors.torch import save_file
from transformers.models.t5.modeling_t5 import T5Attention

SMALL = {
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": 0,
}
MODELS = {
    "t5": {"feed_forward_proj": "relu"},
    "flan_t5": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
STEPS = 10
# Count, largest distance, both ways.
BUCKETS = [(32, 128), (8, 10), (6, 7), (64, 256)]


def randomise(model):
    """Give every parameter a value that matters; near and far differ."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0.0, 0.2)
            if "norm" in name:
                value.add_(1.0)
            if "relative" in name:
                value.mul_(3.0)
    return model.eval()


def inputs(rng):
    """Return sources padded on the right and on the left, targets on the right."""
    mask, target_mask = np.ones((3, 14), np.int64), np.ones((3, 13), np.int64)
    mask[1, -5:] = mask[2, :4] = 0
    target_mask[1, -3:] = 0
    target = rng.integers(3, 50, (3, 13)) * target_mask
    target[:, 0] = 0
    return {
        "input_ids": rng.integers(3, 50, (3, 14)) * mask,
        "attention_mask": mask,
        "decoder_input_ids": target,
        "decoder_attention_mask": target_mask,
    }


def logits(model, given):
    """Return the logits."""
    with torch.no_grad():
        return model(**given).logits.numpy()


def labelled(model, given):
    """Return labels of which some are no targets, and their loss."""
    labels = torch.where(
        given["decoder_attention_mask"] == 1, given["decoder_input_ids"], -100
    )
    labels = labels.roll(-1, 1)
    labels[:, -1] = 7
    source = {key: given[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return {"labels": labels.numpy(), "loss": model(**source, labels=labels).loss}


def greedy(model, given):
    """Return the greedy continuations; nothing ends them.

    The cache of transformers 5.24 has as many layers as the encoder, here too few.
    """
    source = {key: given[key] for key in ("input_ids", "attention_mask")}
    length = {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
    free = {"do_sample": False, "eos_token_id": None, "use_cache": False}
    tokens = model.generate(**source, **length, **free)
    return tokens[:, 1:].numpy()


def buckets():
    """Return the buckets of keys before and behind a query, by settings."""
    found = {}
    for count, most in BUCKETS:
        for both_ways in (False, True):
            distance = torch.arange(-most, most + 1)
            bucket = T5Attention._relative_position_bucket(
                distance, both_ways, count, most
            )
            found[f"{count}_{most}_{both_ways}"] = bucket.numpy()
    return found


def make(folder):
    """Write the models, their inputs and outputs."""
    for i, (name, settings) in enumerate(MODELS.items()):
        torch.manual_seed(i)
        path = folder / name
        model = tf.T5ForConditionalGeneration(tf.T5Config(**SMALL, **settings))
        if name == "flan_t5":  # transformers 5 ties all that it makes
            model.lm_head.weight = torch.nn.Parameter(torch.empty(50, 24))
        randomise(model).save_pretrained(path)
        if name == "flan_t5":  # as transformers 4 writes it
            config = json.loads((path / "config.json").read_text())
            del config["scale_decoder_outputs"]
            config["tie_word_embeddings"] = False
            (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
            copies = [k for k in tensors if k.endswith("embed_tokens.weight")]
            tensors = {k: v for k, v in tensors.items() if k not in copies}
            save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        given = inputs(np.random.default_rng(i))
        tensors = {key: torch.from_numpy(value) for key, value in given.items()}
        np.savez_compressed(
            path / "io.npz",
            **given,
            logits=logits(model, tensors),
            greedy=greedy(model, tensors),
            **labelled(model, tensors),
        )
    np.savez_compressed(folder / "t5" / "buckets.npz", **buckets())
    for name in MODELS:
        (folder / name / "generation_config.json").unlink(missing_ok=True)
    check(folder, *MODELS)


def check(folder, *chosen):
    """Print how far what `transformers` makes of each model is from the record."""
    for path in sorted(folder.iterdir()):
        if chosen and path.name not in chosen:
            continue
        model = tf.T5ForConditionalGeneration.from_pretrained(path).eval()
        io = dict(np.load(path / "io.npz"))
        names = inputs(np.random.default_rng(0))
        given = {key: torch.from_numpy(io[key]) for key in names}
        found = logits(model, given)
        same = (greedy(model, given) == io["greedy"]).all()
        apart, most = np.abs(found - io["logits"]).max(), np.abs(found).max()
        print(f"{path.name}: apart {apart:.2e} of {most:.2f}, greedy equal: {same}")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
