"""Make adapters with the torch library `peft`, and record what they compute.

    pip install torch==2.13.0 transformers peft
    python tests/references/make_adapter_references.py tests/files [NAME ...]

Every adapter is put on one of the tiny models in `tests/files`, gets random values, and
is written as the library writes it to `torch_adapters/MODEL/NAME`. Beside it `io.npz`
holds the logits of the adapted and of the merged model and the number of trainable
parameters. Nothing of peftjax is used here.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers as tf

MODELS = {
    "bert": ("peft_checkpoints/tiny_bert/base", "peft_checkpoints/tiny_bert/base_io"),
    "llama": (
        "peft_checkpoints/tiny_llama/base",
        "peft_checkpoints/tiny_llama/base_io",
    ),
    "vit": ("models/vit", "models/vit/io"),
    "dinov2": ("models/dinov2", "models/dinov2/io"),
    "roberta": ("models/roberta", "models/roberta/io"),
    "bare": ("models/bert", "models/bert/io"),
    "gemma3": ("models/gemma3", "models/gemma3/io"),
    "qwen2": ("models/qwen2", "models/qwen2/io"),
    "t5": ("models/t5", "models/t5/io"),
    "flan_t5": ("models/flan_t5", "models/flan_t5/io"),
}
BERT = ["query", "value", "intermediate.dense"]
LLAMA = ["q_proj", "v_proj", "down_proj"]
VIT = ["q_proj", "projection"]
# The library's own choice of modules, q and v.
T5 = {"task_type": "SEQ_2_SEQ_LM"}
HEAD = {"task_type": "SEQ_CLS"}
LORA = {"r": 4, "lora_alpha": 8}
PATTERNS = {
    **LORA,
    "target_modules": r".*layer\.\d+\..*(query|key|intermediate\.dense)",
    "rank_pattern": {r"layer\.0\..*query": 2, "intermediate.dense": 6},
    "alpha_pattern": {"key": 3, r"1\.attention\.self\.query": 20},
    "use_rslora": True,
}
OFT = {"oft_block_size": 8, "use_cayley_neumann": False}
GLORA = {"config_A_B": "lora", "config_C": "lora", "config_D_E": "vector", "r": 3}
ADALORA = {"init_r": 4, "lora_alpha": 6, "target_r": 2, "total_step": 9, "tfinal": 2}
CONV = {"target_modules": VIT, "modules_to_save": ["classifier"]}

ADAPTERS = {
    "bert/dora": peft.LoraConfig(
        **LORA, use_dora=True, target_modules=BERT, modules_to_save=["classifier"]
    ),
    "bert/dora_rs": peft.LoraConfig(
        **LORA, use_dora=True, use_rslora=True, target_modules=BERT
    ),
    "bert/hra_gs": peft.HRAConfig(r=3, apply_GS=True, target_modules=BERT, **HEAD),
    "bert/lora_patterns": peft.LoraConfig(**PATTERNS, bias="lora_only", **HEAD),
    "bert/lora_all_biases": peft.LoraConfig(
        **LORA, target_modules=BERT, bias="all", **HEAD
    ),
    "bert/dora_embedding": peft.LoraConfig(
        **LORA, use_dora=True, target_modules=["word_embeddings", "query"]
    ),
    "bert/adalora": peft.AdaLoraConfig(**ADALORA, target_modules=BERT, **HEAD),
    "bert/ia3": peft.IA3Config(
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
        **HEAD,
    ),
    "bert/lokr": peft.LoKrConfig(
        r=2, alpha=5, decompose_both=True, rank_pattern={"key": 1}, target_modules=BERT
    ),
    "bert/oft": peft.OFTConfig(**OFT, target_modules=BERT, bias="oft_only"),
    "bert/oft_blocks": peft.OFTConfig(r=4, oft_block_size=0, target_modules=BERT),
    "bert/glora": peft.GloraConfig(**GLORA, target_modules=BERT, **HEAD),
    "bert/glora_vector": peft.GloraConfig(
        config_A_B="vector", config_C="vector", target_modules=BERT
    ),
    "bert/pissa": peft.LoraConfig(
        **LORA, init_lora_weights="pissa", target_modules=BERT, **HEAD
    ),
    "bert/olora": peft.LoraConfig(
        **LORA, init_lora_weights="olora", target_modules=BERT
    ),
    "bert/vera": peft.VeraConfig(r=4, target_modules=BERT, **HEAD),
    "bert/randlora": peft.RandLoraConfig(r=5, target_modules=BERT),
    "bert/loha": peft.LoHaConfig(
        r=2, alpha=5, rank_pattern={"query": 1}, target_modules=BERT
    ),
    "bert/hira": peft.HiraConfig(
        r=3, target_modules=["query", "word_embeddings"], **HEAD
    ),
    "bert/gralora": peft.GraloraConfig(r=4, alpha=6, hybrid_r=2, target_modules=BERT),
    "bert/miss": peft.MissConfig(r=5, target_modules=BERT, **HEAD),
    "bert/delora": peft.DeloraConfig(
        r=3, delora_lambda=2, lambda_pattern={"query": 3}, target_modules=BERT
    ),
    "bert/fourierft": peft.FourierFTConfig(
        n_frequency=30, scaling=20, target_modules=BERT, **HEAD
    ),
    "bert/c3a": peft.C3AConfig(
        block_size=8, block_size_pattern={"query": 4}, target_modules=BERT
    ),
    "bert/shira": peft.ShiraConfig(r=2, target_modules=BERT),
    "bert/boft": peft.BOFTConfig(boft_block_size=4, target_modules=BERT),
    "bert/road": peft.RoadConfig(variant="road_2", group_size=8, target_modules=BERT),
    "llama/hra": peft.HRAConfig(r=4, target_modules=LLAMA, task_type="CAUSAL_LM"),
    "llama/lora_layers": peft.LoraConfig(
        **LORA, target_modules=LLAMA, layers_to_transform=[1], layers_pattern="layers"
    ),
    "llama/lora_every": peft.LoraConfig(
        **LORA,
        target_modules="all-linear",
        exclude_modules=["k_proj"],
        modules_to_save=["lm_head", "norm"],
        task_type="CAUSAL_LM",
    ),
    "llama/glora": peft.GloraConfig(**GLORA, target_modules=LLAMA),
    "gemma3/lora": peft.LoraConfig(
        **LORA, target_modules=LLAMA, modules_to_save=["q_norm"], task_type="CAUSAL_LM"
    ),
    "qwen2/dora": peft.LoraConfig(**LORA, use_dora=True, target_modules=LLAMA),
    "vit/adalora": peft.AdaLoraConfig(**ADALORA, **CONV),
    "vit/dora": peft.LoraConfig(**LORA, use_dora=True, **CONV),
    "vit/hra": peft.HRAConfig(r=4, **CONV),
    "vit/ia3": peft.IA3Config(
        target_modules=["k_proj", "fc2", "projection"],
        feedforward_modules=["fc2", "projection"],
    ),
    "roberta/lora": peft.LoraConfig(**LORA, target_modules=["query"], **HEAD),
    "bare/lora": peft.LoraConfig(**LORA, target_modules=["query", "pooler.dense"]),
    "dinov2/oft": peft.OFTConfig(
        **OFT, target_modules=["q_proj", "fc2"], modules_to_save=["classifier"]
    ),
    "bert/trainable_tokens": peft.TrainableTokensConfig(
        target_modules=["word_embeddings"], token_indices=[42, 5, 94]
    ),
    "gemma3/trainable_tokens": peft.TrainableTokensConfig(
        target_modules=["embed_tokens"], token_indices=[3, 17], task_type="CAUSAL_LM"
    ),
    "t5/lora": peft.LoraConfig(**LORA, **T5),
    "t5/hra": peft.HRAConfig(r=4, **T5),
    "flan_t5/lora": peft.LoraConfig(**LORA, **T5),
    "flan_t5/lora_head": peft.LoraConfig(
        **LORA, **T5, target_modules=["k", "wi_1", "wo"], modules_to_save=["lm_head"]
    ),
    "flan_t5/ia3": peft.IA3Config(**T5),
}


def base(name):
    """Return a fresh model and its recorded inputs."""
    where, io = (Path(sys.argv[1]) / part for part in MODELS[name])
    config = tf.AutoConfig.from_pretrained(where)
    model = getattr(tf, config.architectures[0]).from_pretrained(where)
    recorded = np.load(io.with_suffix(".npz"))
    names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
    names += ("decoder_input_ids", "decoder_attention_mask")
    given = {n: torch.from_numpy(recorded[n]) for n in names if n in recorded}
    return model.eval(), given


def randomise(model):
    """Give every trainable parameter a value that matters."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                # An HRA column or an OFT rotation of any size will do.
                scale = (
                    0.1 if "ia3" in name or "oft" in name or "glora" in name else 0.2
                )
                value.add_(torch.randn_like(value) * scale)


def prune(adapted, config):
    """Take triplets away from every module of an AdaLoRA, from one all."""
    config.rank_pattern = {}
    for name, value in adapted.base_model.model.named_parameters():
        if "lora_E" in name:
            kept = torch.rand(len(value)) < (0.6 if config.rank_pattern else 0.0)
            value.data[~kept] = 0.0
            config.rank_pattern[name] = kept.tolist()


def logits(model, given):
    """Return the logits, or a bare encoder's pooled output."""
    with torch.no_grad():
        out = model(**given)
    return (out.logits if "logits" in out else out.pooler_output).numpy()


def make(name, config, folder):
    """Write one adapter with its outputs."""
    model, given = base(name.partition("/")[0])
    adapted = peft.get_peft_model(model, config)
    randomise(adapted)
    if config.peft_type == "ADALORA":
        prune(adapted, config)
    adapted.eval()
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    trainable, _ = adapted.get_nb_trainable_parameters()
    record = {"logits_adapted": logits(adapted, given), "n_trainable": trainable}
    record["logits_merged"] = logits(adapted.merge_and_unload(), given)
    again = peft.PeftModel.from_pretrained(base(name.partition("/")[0])[0], folder)
    apart = np.abs(logits(again.eval(), given) - record["logits_adapted"]).max()
    merged = np.abs(record["logits_merged"] - record["logits_adapted"]).max()
    moved = np.abs(
        logits(*base(name.partition("/")[0])) - record["logits_adapted"]
    ).max()
    print(f"{name}: reloaded {apart:.1e}, merged {merged:.1e}, base {moved:.1e}")
    np.savez_compressed(folder / "io.npz", **record)


if __name__ == "__main__":
    root = Path(sys.argv[1]) / "torch_adapters"
    for i, (name, config) in enumerate(ADAPTERS.items()):
        if name in (sys.argv[2:] or ADAPTERS):
            shutil.rmtree(root / name, ignore_errors=True)
            torch.manual_seed(i)
            make(name, config, root / name)
