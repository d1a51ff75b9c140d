"""Presets: the papers' layers on every family, counted against the papers' numbers."""

import re

import jax
import jax.numpy as jnp
import pytest

import peftjax as pj
from peftjax.methods.composition import Composition
from peftjax.models import (
    Bert,
    BertConfig,
    Llama,
    LlamaConfig,
    UNet2DConditionModel,
    UNetConfig,
    ViT,
    family_of,
    vit,
)
from peftjax.presets import rules

IDS = jax.ShapeDtypeStruct((1, 8), jnp.int32)
IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
LLAMA2_7B = LlamaConfig()


def plan(model, example, chosen, strict=True):
    """Adapt a model of which only shapes exist."""
    variables = jax.eval_shape(model.init, jax.random.key(0), example)
    return pj.adapt(model.apply, variables, example, rules=chosen, strict=strict)


def trainable(peft):
    return sum(site.trainable for site in peft.sites)


BASE = Bert(BertConfig(roberta=True), head=2, scan_layers=True)


@pytest.mark.parametrize(
    ("model", "example", "family", "method", "count"),
    [
        # specs: Hydra 239,712 on ViT-B/16 and 331,776 on RoBERTa-base; HRA 663,552 on
        # base-sized encoders; GLoRA's supernet at rank 4; HydraLoRA with its router
        (vit("B/16"), IMAGES, "vit", pj.Hydra(rank=2, branch_bias=True), 239_712),
        (vit("B/16"), IMAGES, "vit", pj.GLoRASupernet(rank=4), 1_603_776),
        (BASE, IDS, "roberta", pj.Hydra(rank=4, seq_rank=8), 331_776),
        (BASE, IDS, "roberta", pj.HRA(rank=8), 663_552),
        (BASE, IDS, "roberta", pj.LoRA(rank=8, alpha=16.0), 294_912),
        (
            Llama(LLAMA2_7B, scan_layers=True),
            IDS,
            "llama",
            pj.HydraLoRA(rank=4, heads=4, alpha=32.0),
            15_826_944 + 2_457_600,
        ),
        (
            Llama(LLAMA2_7B, scan_layers=True),
            IDS,
            "llama",
            pj.HRA(rank=8, side="output"),
            2_097_152,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_counts_of_the_papers(model, example, family, method, count):
    peft = plan(model, example, rules(family, method, head=False))
    assert trainable(peft) == count
    assert all(site.fast for site in peft.sites)


def test_hydralora_on_the_layers_that_fit_the_paper():
    method = pj.HydraLoRA(rank=8, heads=3, alpha=32.0)
    chosen = rules("llama", method, parts=("query", "value"))
    peft = plan(Llama(LLAMA2_7B, scan_layers=True), IDS, chosen)
    assert trainable(peft) == 8_388_608 + 786_432


SMALL_BERT = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
)
SMALL_LLAMA = LlamaConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)
SMALL_VIT = {
    "image_size": 8,
    "patch_size": 4,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "num_classes": 3,
}
SMALL_IMAGES = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
FAMILIES = {
    "vit": (lambda **options: ViT(**SMALL_VIT, **options), SMALL_IMAGES),
    "bert": (lambda **options: Bert(SMALL_BERT, head=3, **options), IDS),
    "llama": (lambda **options: Llama(SMALL_LLAMA, **options), IDS),
}
METHODS = [
    pj.LoRA(rank=2, alpha=3.0),
    pj.DoRA(rank=2, alpha=3.0),
    pj.Hydra(rank=2),
    pj.HydraLoRA(rank=2, heads=3, alpha=5.0),
    pj.HRA(rank=2),
    pj.GLoRASupernet(rank=2),
    pj.IA3(),
    pj.SSF(),
    pj.OFT(block=4),
    Composition(modules=2, rank=2),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_scanned_and_unrolled_models_get_the_same_layers(family, method):
    build, example = FAMILIES[family]
    chosen = rules(family, method)
    unrolled = plan(build(), example, chosen)
    scanned = plan(build(scan_layers=True), example, chosen)
    assert trainable(unrolled) == trainable(scanned) > 0
    without_numbers = {re.sub(r"_\d+/", "/", site.path) for site in unrolled.sites}
    assert without_numbers == {site.path for site in scanned.sites}
    assert all(site.fast for site in (*unrolled.sites, *scanned.sites))


def test_ia3_scales_outputs_of_keys_and_inputs_of_the_mlp():
    for family, down in (("bert", "output"), ("llama", "mlp/down_proj")):
        build, example = FAMILIES[family]
        peft = plan(build(), example, rules(family, pj.IA3()))
        sides = {site.path: getattr(site.method, "side", "") for site in peft.sites}
        inputs = {path for path, side in sides.items() if side == "input"}
        assert inputs == {f"layers_{i}/{down}/kernel" for i in range(2)}
        assert sum(side == "output" for side in sides.values()) == 4


def test_baselines_train_all_the_head_or_the_biases():
    build, example = FAMILIES["bert"]
    variables = jax.eval_shape(build().init, jax.random.key(0), example)["params"]
    every = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert trainable(plan(build(), example, rules("bert", "full"))) == every
    head = sum(leaf.size for leaf in jax.tree.leaves(variables["classifier"]))
    assert trainable(plan(build(), example, rules("bert", "linear"))) == head
    bitfit = plan(build(), example, rules("bert", "bitfit"))
    paths = {site.path for site in bitfit.sites}
    kernels = {path for path in paths if not path.endswith("bias")}
    assert kernels == {"classifier/kernel"}
    assert "embeddings/norm/bias" in paths


@pytest.mark.parametrize("family", FAMILIES)
def test_layernorm_trains_the_norms_of_every_family(family):
    build, example = FAMILIES[family]
    peft = plan(build(), example, rules(family, "layernorm", head=False))
    variables = jax.eval_shape(build().init, jax.random.key(0), example)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = ["/".join(key.key for key in path) for path, _ in leaves]
    norms = {path for path in paths if re.search(r"norm\w*/\w+$", path)}
    assert {site.path for site in peft.sites} == norms and len(norms) >= 4


def test_separate_and_fused_projections_of_a_vit():
    method = pj.LoRA(rank=2, alpha=3.0)
    build, example = FAMILIES["vit"]
    for fused, names in ((True, {"qkv"}), (False, {"q", "v"})):
        peft = plan(build(fused_qkv=fused), example, rules("vit", method, head=False))
        assert {site.path.split("/")[2] for site in peft.sites} == names


class Own(pj.LoRA):
    """A method derived from one with a placement."""


class Other(pj.Method):
    """A method of no paper."""


def test_methods_of_your_own():
    method = Own(rank=2, alpha=3.0)
    same = rules("bert", pj.LoRA(rank=2, alpha=3.0))
    assert list(rules("bert", method)) == list(same)
    with pytest.raises(ValueError, match="Other has no placement"):
        rules("bert", Other())
    assert list(rules("bert", Other(), parts=("up",), head=False)) == [
        r"layers(_\d+)?/(intermediate)/kernel"
    ]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("gpt", pj.SSF()), {}, "family: expected one of bert"),
        (("bert", "prompt"), {}, "baseline: expected one of full"),
        (("bert", pj.SSF()), {"parts": ("gate",)}, "part of bert"),
        (("llama", "linear"), {}, "give head=True"),
    ],
)
def test_unknown_names(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        rules(*arguments, **options)


@pytest.mark.slow
def test_attention_of_a_u_net_has_the_counts_of_the_paper():
    # By hand for Stable Diffusion 1.5: five transformers of 320 features, five of 640
    # and six of 1280, each attending to itself and to a text of 768. HRA has a number
    # for each input feature, LoRA for each output feature as well: 0.70 M at rank 7
    # and 0.80 M at rank 4.
    widths = 5 * [320] + 5 * [640] + 6 * [1280]
    inputs = sum(6 * n + 2 * 768 for n in widths)
    model = UNet2DConditionModel(UNetConfig())
    example = family_of(model).examples(model, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), *example)
    chosen = rules("unet", pj.HRA(rank=7, allow_non_identity=True))
    peft = pj.adapt(model.apply, variables, *example, rules=chosen, strict=True)
    assert len(peft.sites) == 16 * 8
    assert trainable(peft) == 7 * inputs == 696_192
    lora = pj.LoRA(rank=4, alpha=4.0)
    (pattern,) = rules("unet", lora)
    assert [pattern] == [*chosen]
    count = sum(lora.count(site.layer()) for site in peft.sites)
    assert count == 4 * (inputs + 8 * sum(widths)) == 797_184


def test_a_u_net_has_no_head_to_train():
    assert list(rules("unet", pj.HRA(rank=8))) == [
        r".*/attentions_\d+/transformer_blocks(_\d+)?/"
        r"(attn[12]/to_q|attn[12]/to_k|attn[12]/to_v|attn[12]/to_out)/kernel"
    ]
    with pytest.raises(ValueError, match="a unet has none to train"):
        rules("unet", pj.HRA(rank=8), head=True)
    with pytest.raises(ValueError, match="linear probing needs a head"):
        rules("unet", "linear")
