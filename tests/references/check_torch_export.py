"""Show that the torch library `peft` loads what `peftjax.hub.save_torch` writes.

    python tests/references/check_torch_export.py train tests/files [NAME ...]
    pip install torch==2.13.0 transformers peft
    python tests/references/check_torch_export.py check tests/files [NAME ...]

`train` needs peftjax: it trains adapters for a few steps on the tiny models of
`tests/files` and writes each to `torch_export/MODEL/NAME`, with its logits in `io.npz`.
`check` needs only torch: it loads each with the library, as it would its own, prints
how far its logits are, and records them as `torch.npz`.
"""

import shutil
import sys
import warnings
from pathlib import Path

import numpy as np

BASES = {
    "bert": (
        "peft_checkpoints/tiny_bert/base",
        "peft_checkpoints/tiny_bert/base_io.npz",
    ),
    "llama": (
        "peft_checkpoints/tiny_llama/base",
        "peft_checkpoints/tiny_llama/base_io.npz",
    ),
    "vit": ("models/vit", "models/vit/io.npz"),
    "dinov2": ("models/dinov2", "models/dinov2/io.npz"),
    "flan_t5": ("models/flan_t5", "models/flan_t5/io.npz"),
}
STEPS = 8


def adapters():
    """Return the rules of every adapter."""
    import peftjax as pj

    def bert(method, parts=r"(attention/(query|value)|intermediate)"):
        return {rf"layers_\d+/{parts}/kernel": method, "classifier/.*": pj.Full()}

    def llama(method):
        return {r"layers_\d+/(self_attn/[qv]_proj|mlp/down_proj)/kernel": method}

    def vit(method):
        return {r"blocks_\d+/attn/[qv]/kernel|patch_embed/kernel": method}

    lora, vector = pj.LoRA(rank=4, alpha=12.0, dropout=0.1), "vector"
    ranks = {"layers_0/attention/query/kernel": pj.LoRA(2, alpha=7.5, dropout=0.1)}
    return {
        "bert/lora": bert(lora),
        "bert/hra": bert(pj.HRA(rank=4)),
        "bert/lora_ranks": {
            **ranks,
            **bert(lora, "attention/(query|key)"),
            r"layers_\d+/attention/(query|key)/bias": pj.Full(),
        },
        "bert/rslora_biases": {
            **bert(pj.LoRA(rank=4, alpha=3.0, rs=True)),
            ".*/bias": pj.Full(),
        },
        "bert/lora_embedding": {"embeddings/word_embeddings/embedding": lora},
        "bert/ia3": {
            r"layers_\d+/attention/(key|value)/kernel": pj.IA3(),
            r"layers_\d+/output/kernel": pj.IA3(side="input"),
        },
        "bert/adalora": bert(
            pj.AdaLoRA(rank=4, alpha=6.0, target_rank=2, total_steps=STEPS, final=2)
        ),
        "bert/lokr": bert(pj.LoKr(rank=2, alpha=5.0)),
        "bert/oft": bert(pj.OFT(block=8)),
        "bert/oft_neumann": bert(pj.OFT(block=4, neumann=True, share=True)),
        "bert/glora": bert(pj.GLoRA(rank=3)),
        "bert/glora_partly": bert(
            pj.GLoRA(3, a=vector, b=vector, c="none", d="constant", e="constant")
        ),
        "bert/dora": bert(pj.DoRA(rank=4, alpha=6.0)),
        "llama/lora": llama(lora),
        "llama/lora_one_layer": {
            "layers_1/self_attn/q_proj/kernel": lora,
            "(norm|lm_head)/.*": pj.Full(),
        },
        "llama/hra": llama(pj.HRA(rank=3, orthogonal=True)),
        "llama/glora": llama(pj.GLoRA(rank=3, c="none", d="none", e="none")),
        "vit/lora": vit(lora),
        "vit/hra": vit(pj.HRA(rank=4)),
        "dinov2/lora": {**vit(lora), "head/.*": pj.Full()},
        "dinov2/hra": vit(pj.HRA(rank=4)),
        "flan_t5/lora": pj.presets.rules("t5", lora),
        "flan_t5/hra": pj.presets.rules("t5", pj.HRA(rank=4)),
    }


def inputs(root, name):
    """Return the inputs of a base model."""
    with np.load(root / BASES[name][1]) as io:
        names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
        names += ("decoder_input_ids", "decoder_attention_mask")
        return {key: io[key] for key in names if key in io}


def train(root, *chosen):
    """Train every adapter, or the chosen, and write it."""
    import jax
    import optax

    import peftjax as pj

    for number, (name, rules) in enumerate(adapters().items()):
        if chosen and name not in chosen:
            continue
        base = name.partition("/")[0]
        model, variables = pj.models.load(root / BASES[base][0])
        given = inputs(root, base)
        if "pixel_values" in given:
            given = {"images": given["pixel_values"].transpose(0, 2, 3, 1)}
        peft = pj.adapt(model.apply, variables, **given, rules=rules)
        params, frozen = peft.partition(peft.init(jax.random.key(number)))
        move = pj.search.allocate(peft) if "adalora" in name else None
        shape = jax.eval_shape(model.apply, variables, **given).shape
        target = np.random.default_rng(number).normal(size=shape)
        optimizer = optax.adam(3e-2)

        def loss(
            params, frozen, peft=peft, variables=variables, given=given, target=target
        ):
            adapters = peft.combine(params, frozen)
            logits = peft.apply(variables, adapters, **given)
            return ((logits - target) ** 2).mean()

        @jax.jit
        def step(
            params, frozen, state, number, loss=loss, move=move, optimizer=optimizer
        ):
            value, grads = jax.value_and_grad(loss)(params, frozen)
            updates, state = optimizer.update(grads, state)
            params = optax.apply_updates(params, updates)
            if move is not None:
                frozen = move(frozen, params, grads, number, None)
            return params, frozen, state, value

        state, values = optimizer.init(params), []
        for update in range(STEPS):
            params, frozen, state, value = step(params, frozen, state, update)
            values.append(float(value))
        params = peft.combine(params, frozen)
        folder = root / "torch_export" / name
        shutil.rmtree(folder, ignore_errors=True)
        pj.hub.save_torch(folder, model, peft, params, base_model_name=f"tiny_{base}")
        logits = jax.jit(peft.apply)(variables, params, **given)
        np.savez_compressed(folder / "io.npz", logits=logits)
        print(f"{name}: loss {values[0]:.3f} to {values[-1]:.3f}")


def check(root, *chosen):
    """Load all adapters, or the chosen, with the library and record their logits."""
    import peft
    import torch
    import transformers

    classes = {
        "bert": transformers.BertForSequenceClassification,
        "llama": transformers.LlamaForCausalLM,
        "vit": transformers.ViTForImageClassification,
        "dinov2": transformers.Dinov2ForImageClassification,
        "flan_t5": transformers.T5ForConditionalGeneration,
    }
    for folder in sorted((root / "torch_export").glob("*/*")):
        base = folder.parent.name
        if chosen and f"{base}/{folder.name}" not in chosen:
            continue
        model = classes[base].from_pretrained(root / BASES[base][0])
        given = {k: torch.from_numpy(v) for k, v in inputs(root, base).items()}
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(model, folder).eval()
            found = {"logits": adapted(**given).logits}
            merged = adapted.merge_and_unload()
            found["logits_merged"] = merged(**given).logits
        found = {key: value.numpy() for key, value in found.items()}
        with np.load(folder / "io.npz") as io:
            apart = [np.abs(value - io["logits"]).max() for value in found.values()]
        print(
            f"{folder.relative_to(root)}: apart {apart[0]:.1e}, merged {apart[1]:.1e}"
        )
        for warning in caught:
            if "keys" in str(warning.message):
                print("   ", warning.message)
        np.savez_compressed(folder / "torch.npz", **found)


if __name__ == "__main__":
    {"train": train, "check": check}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
