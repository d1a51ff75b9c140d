"""Make tiny random models with `transformers`, and record what they compute.

    pip install torch==2.13.0 transformers
    python tests/references/make_model_references.py make tests/files/models [NAMES]
    python tests/references/make_model_references.py check FOLDER

`make` writes for each model, or those named, `config.json`, `model.safetensors` and
`io.npz` (inputs, hidden states, outputs). `check` loads with `transformers` every model
in a folder, each beside its `io.npz`, and prints how far its outputs are from the
recorded ones: run it on what `peftjax.models.save` wrote. Nothing of peftjax is used.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from safetensors.numpy import load_file

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 50,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def models():
    """Return the models by name."""
    bert = {**SMALL, "max_position_embeddings": 20}
    roberta = {**bert, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    llama = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}
    llama3 = tf.LlamaConfig(
        **llama, rope_parameters=LLAMA3, tie_word_embeddings=True, rms_norm_eps=1e-5
    )
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    biased = tf.LlamaConfig(
        **{**llama, "head_dim": 10, "num_key_value_heads": 1},
        rope_parameters=linear,
        attention_bias=True,
        mlp_bias=True,
    )
    vit = tf.ViTConfig(
        **{**SMALL, "vocab_size": None},
        image_size=16,
        patch_size=4,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    dinov2 = tf.Dinov2Config(
        **{**SMALL, "vocab_size": None},
        mlp_ratio=2,
        image_size=16,
        patch_size=4,
        num_labels=5,
        layerscale_value=0.5,
    )
    regression = tf.LlamaConfig(**llama, num_labels=1, pad_token_id=0)
    windows = {**llama, "sliding_window": 4, "attn_implementation": "eager"}
    qwen = {**windows, "use_sliding_window": True, "max_window_layers": 1}
    gemma = {**windows, "head_dim": 8, "query_pre_attn_scalar": 5}
    kinds = ["sliding_attention", "full_attention"]
    gemma2 = tf.Gemma2Config(
        **gemma, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    )
    gemma3 = tf.Gemma3TextConfig(
        **gemma,
        layer_types=kinds,
        rope_parameters={
            kinds[0]: {"rope_type": "default", "rope_theta": 100.0},
            kinds[1]: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
        },
    )
    return {
        "bert": tf.BertModel(tf.BertConfig(**bert, hidden_act="gelu_new")),
        "roberta": tf.RobertaForSequenceClassification(
            tf.RobertaConfig(**roberta, num_labels=3)
        ),
        "roberta_bare": tf.RobertaModel(tf.RobertaConfig(**roberta)),
        "llama3": tf.LlamaForCausalLM(llama3),
        "llama_biased": tf.LlamaForCausalLM(biased),
        "llama_regression": tf.LlamaForSequenceClassification(regression),
        "vit": tf.ViTForImageClassification(vit),
        "mistral": tf.MistralForCausalLM(tf.MistralConfig(**windows)),
        "qwen2": tf.Qwen2ForCausalLM(tf.Qwen2Config(**qwen)),
        "qwen3": tf.Qwen3ForCausalLM(
            tf.Qwen3Config(**qwen, head_dim=8, tie_word_embeddings=True)
        ),
        "gemma2": tf.Gemma2ForCausalLM(gemma2),
        "gemma3": tf.Gemma3ForCausalLM(gemma3),
        "xlm_roberta": tf.XLMRobertaForSequenceClassification(
            tf.XLMRobertaConfig(**roberta, num_labels=3)
        ),
        "dinov2": tf.Dinov2ForImageClassification(dinov2),
    }


def randomise(model):
    """Give every parameter a value that matters, norms and biases included."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0.0, 0.2)
            if "norm" in name.lower() and name.endswith("weight"):
                value.add_(1.0)
    return model.eval()


def inputs(name, rng):
    """Return the inputs: rows of different lengths, padded on the right or the left."""
    if name in ("vit", "dinov2"):
        return {"pixel_values": rng.normal(size=(3, 3, 16, 16)).astype(np.float32)}
    ids = rng.integers(3, 50, (3, 12))
    mask = np.ones((3, 12), np.int64)
    # Of those with adapters every token sees one that is no padding.
    few = 3 if name in ("qwen2", "gemma3") else 4
    rows = mask[1:2, :4] if name in ("llama_biased", "mistral") else mask[1:2, -few:]
    rows[:] = 0
    pad = 1 if "roberta" in name else 0
    return {"input_ids": np.where(mask, ids, pad), "attention_mask": mask}


def run(model, given):
    """Return outputs and hidden states."""
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    with torch.no_grad():
        out = model(**tensors, output_hidden_states=True)
    found = {f"hidden_states.{i}": h for i, h in enumerate(out.hidden_states)}
    for name in ("logits", "last_hidden_state", "pooler_output"):
        if getattr(out, name, None) is not None:
            found[name] = getattr(out, name)
    return {name: value.numpy() for name, value in found.items()}


def google_npz(model, path):
    """Write a ViT as Google's files have it: Flax layouts, heads as an axis."""
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    state = load_file(path / "model.safetensors")
    out = {"cls": state["vit.embeddings.cls_token"]}
    out["Transformer/posembed_input/pos_embedding"] = state[
        "vit.embeddings.position_embeddings"
    ]
    patch = "vit.embeddings.patch_embeddings.projection"
    out["embedding/kernel"] = state[f"{patch}.weight"].transpose(2, 3, 1, 0)
    out["embedding/bias"] = state[f"{patch}.bias"]

    def norm(ours, theirs):
        out[f"{ours}/scale"] = state[f"{theirs}.weight"]
        out[f"{ours}/bias"] = state[f"{theirs}.bias"]

    def dense(ours, theirs, kernel, bias):
        out[f"{ours}/kernel"] = state[f"{theirs}.weight"].T.reshape(kernel)
        out[f"{ours}/bias"] = state[f"{theirs}.bias"].reshape(bias)

    split = (heads, width // heads)
    for i in range(model.config.num_hidden_layers):
        ours, theirs = f"Transformer/encoderblock_{i}", f"vit.encoder.layer.{i}"
        attention = f"{ours}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            original = f"{theirs}.attention.attention.{part}"
            dense(f"{attention}/{part}", original, (width, *split), split)
        original = f"{theirs}.attention.output.dense"
        dense(f"{attention}/out", original, (*split, width), (width,))
        norm(f"{ours}/LayerNorm_0", f"{theirs}.layernorm_before")
        norm(f"{ours}/LayerNorm_2", f"{theirs}.layernorm_after")
        dense(
            f"{ours}/MlpBlock_3/Dense_0",
            f"{theirs}.intermediate.dense",
            (width, -1),
            -1,
        )
        dense(f"{ours}/MlpBlock_3/Dense_1", f"{theirs}.output.dense", (-1, width), -1)
    norm("Transformer/encoder_norm", "vit.layernorm")
    dense("head", "classifier", (width, -1), -1)
    np.savez(path / "google.npz", **out)


def make(folder, *chosen):
    """Write every model, or the chosen, its inputs and its outputs."""
    for i, (name, model) in enumerate(models().items()):
        if chosen and name not in chosen:
            continue
        torch.manual_seed(i)
        path = folder / name
        randomise(model).save_pretrained(path)
        given = inputs(name, np.random.default_rng(i))
        np.savez_compressed(path / "io.npz", **given, **run(model, given))
        if name == "vit":
            google_npz(model, path)


def check(folder):
    """Print how far what `transformers` makes of each model is from the record."""
    for path in sorted(folder.iterdir()):
        config = tf.AutoConfig.from_pretrained(path)
        model = getattr(tf, config.architectures[0]).from_pretrained(path).eval()
        io = dict(np.load(path / "io.npz"))
        outputs = ("logits", "last_hidden_state", "pooler_output", "hidden_states")
        given = {k: v for k, v in io.items() if not k.startswith(outputs)}
        found = run(model, given)
        worst = max(float(np.abs(found[k] - io[k]).max()) for k in found if k in io)
        print(f"{path.name}: {type(model).__name__}, largest difference {worst:.2e}")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
