"""Make tiny random DeBERTa-v2/v3 and CLIP models, and record what they compute.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/references/make_deberta_clip_references.py make tests/files/models
    python tests/references/make_deberta_clip_references.py check FOLDER

As `make_model_references.py`, for these two families; `check` looks only at models
whose names begin with `deberta` or `clip`. `deberta_buckets.npz`, beside the folder,
holds the buckets of relative distances, `clip_tokenizer` a tokenizer and ids. Nothing
of peftjax is used here.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from make_model_references import SMALL, randomise
from tokenizers.pre_tokenizers import ByteLevel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

# As in the published config.json of DeBERTa-v3, but for the sizes.
V3 = {
    **SMALL,
    "max_position_embeddings": 16,
    "relative_attention": True,
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
# All that may differ: own matrices and rows for positions, tables, projection.
V2 = {
    **V3,
    "position_buckets": -1,
    "max_relative_positions": 5,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": True,
    "type_vocab_size": 2,
    "embedding_size": 20,
    "hidden_act": "gelu_new",
    "pooler_hidden_act": "tanh",
}
TEXT = {**SMALL, "max_position_embeddings": 14}
ENCODER = {"eos_token_id": 2, "bos_token_id": 44}  # as of Stable Diffusion's
VISION = {**SMALL, "hidden_size": 32, "image_size": 16, "patch_size": 4}
TENSORS = (
    "logits",
    "last_hidden_state",
    "logits_per_image",
    "text_embeds",
    "image_embeds",
    "pooler_output",
)
TEXTS = (
    "a photo of the cat",
    "  The CAT's  lower\tcat, 3 × 12!?",
    "naïve résumé, ｆull",
    "日本 <|endoftext|> it'll",
    "",
)


def models():
    """Return the models by name."""
    config, classifier = tf.DebertaV2Config, tf.DebertaV2ForSequenceClassification
    openai = tf.CLIPConfig(
        text_config={**TEXT, "eos_token_id": 2},
        vision_config={**VISION, "vocab_size": None},
        projection_dim=20,
    )
    later = tf.CLIPConfig(
        text_config={**TEXT, "eos_token_id": 45, "hidden_act": "gelu"},
        vision_config={**VISION, "vocab_size": None, "hidden_act": "gelu"},
        projection_dim=12,
    )
    plain = {"relative_attention": False, "norm_rel_ebd": "none"}
    return {
        "deberta": classifier(config(**V3, num_labels=3)),
        "deberta_bare": tf.DebertaV2Model(config(**{**V3, "pos_att_type": ["c2p"]})),
        "deberta_absolute": classifier(config(**{**V2, **plain}, num_labels=2)),
        "deberta_unshared": classifier(config(**V2, num_labels=1)),
        "clip": tf.CLIPModel(openai),
        "clip_gelu": tf.CLIPModel(later),
        "clip_text": tf.CLIPTextModel(tf.CLIPTextConfig(**TEXT, **ENCODER)),
        "clip_text_projected": tf.CLIPTextModelWithProjection(
            tf.CLIPTextConfig(
                **{**TEXT, "hidden_act": "gelu"}, **ENCODER, projection_dim=20
            )
        ),
    }


def inputs(name, rng):
    """Return the inputs, of texts with rows of different lengths."""
    ids, mask = rng.integers(3, 44, (3, 13)), np.ones((3, 13), np.int64)
    mask[1, 9:] = 0
    mask[2, 4:] = 0
    if not name.startswith("clip"):
        ids = np.where(mask, ids, 0)
        types = {"token_type_ids": rng.integers(0, 2, (3, 13))}
        same = {"input_ids": ids, "attention_mask": mask}
        return same if name in ("deberta", "deberta_bare") else {**same, **types}
    # The end of a text is 45; with `eos_token_id` 2 it is the largest of the row.
    ids = np.where(mask, ids, 45)
    ids[0, -1] = ids[1, 8] = ids[2, 3] = 45
    if name.startswith("clip_text"):
        return {"input_ids": ids}
    images = rng.normal(size=(4, 3, 16, 16)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images}


def run(model, given):
    """Return outputs and hidden states."""
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    with torch.no_grad():
        out = model(**tensors, output_hidden_states=True)
    found = {n: getattr(out, n) for n in TENSORS if getattr(out, n, None) is not None}
    parts = {"": out}
    if isinstance(model, tf.CLIPModel):
        parts = {"image.": out.vision_model_output, "text.": out.text_model_output}
        # The projected features come in the same place as the towers' own.
        with torch.no_grad():
            found["image.pooler_output"] = model.vision_model(
                tensors["pixel_values"]
            ).pooler_output
            found["text.pooler_output"] = model.text_model(
                tensors["input_ids"], tensors["attention_mask"]
            ).pooler_output
    for prefix, part in parts.items():
        states = part.hidden_states
        found |= {f"{prefix}hidden_states.{i}": h for i, h in enumerate(states)}
        if prefix:
            found[f"{prefix}last_hidden_state"] = part.last_hidden_state
    return {name: value.numpy() for name, value in found.items()}


def make(folder):
    """Write every model, its inputs and its outputs."""
    for i, (name, model) in enumerate(models().items()):
        torch.manual_seed(100 + i)
        path = folder / name
        randomise(model)
        if isinstance(model, tf.CLIPModel):
            model.logit_scale.data.fill_(1.7)
        model.save_pretrained(path)
        given = inputs(name, np.random.default_rng(100 + i))
        np.savez_compressed(path / "io.npz", **given, **run(model, given))
    distance = torch.arange(-520, 521)
    buckets = {
        f"{count}_{most}": make_log_bucket_position(distance, count, most).long()
        for count, most in ((256, 512), (32, 128), (50, 300), (4, 16))
    }
    np.savez_compressed(folder.parent / "deberta_buckets.npz", **buckets)
    make_tokenizer(folder.parent / "clip_tokenizer")


def make_tokenizer(folder):
    """Write a tokenizer as Stable Diffusion 1.5's lies there, and ids of texts."""
    merges = "t h|th e</w>|c a|ca t</w>|l o|lo w|low er</w>|1 2|r é|e r</w>".split("|")
    merges = [tuple(merge.split()) for merge in merges]
    letters = sorted(ByteLevel.alphabet())
    pieces = letters + [x + "</w>" for x in letters] + ["".join(m) for m in merges]
    names = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    made = tf.CLIPTokenizer(vocab=vocabulary, merges=merges)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}")
    kind = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    ids = {text: made(text).input_ids for text in TEXTS}
    (folder / "ids.json").write_text(json.dumps(ids))


def check(folder):
    """Print how far what `transformers` makes of each model is from the record."""
    for path in sorted([*folder.glob("deberta*"), *folder.glob("clip*")]):
        config = tf.AutoConfig.from_pretrained(path)
        model = getattr(tf, config.architectures[0]).from_pretrained(path).eval()
        io = dict(np.load(path / "io.npz"))
        names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
        found = run(model, {k: io[k] for k in names if k in io})
        worst = max(float(np.abs(found[k] - io[k]).max()) for k in found)
        print(f"{path.name}: {type(model).__name__}, largest difference {worst:.2e}")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]))
