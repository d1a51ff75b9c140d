"""CLIP: equal to the original, zero-shot from prompts, a head from text embeddings."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peftjax as pj
from peftjax.models import (
    CheckpointError,
    Clip,
    ClipClassifier,
    ClipConfig,
    class_embeddings,
    image_classifier,
    load,
    save,
    zero_shot,
)
from peftjax.models.clip.towers import ImageTower, TextTower
from peftjax.models.layers import stack_layers
from peftjax.presets import rules
from tests.helpers.model_cases import (
    EPS,
    MODELS,
    check_hidden_states,
    close,
    reference,
    run,
)

pytestmark = pytest.mark.slow

CLASSES = ["cat", "big dog", "boat"]
TEMPLATES = ("a photo of a {}.", "{}, a drawing")
NAMES = ["clip", "clip_gelu"]


def images_and_texts(io):
    images = io["pixel_values"].transpose(0, 2, 3, 1)
    return images, io["input_ids"], io["attention_mask"]


def part(io, name):
    return {k.removeprefix(f"{name}."): v for k, v in io.items() if k.startswith(name)}


@pytest.fixture(scope="module")
def clip():
    """Return model, variables, images and texts."""
    model, variables, io = reference(MODELS / "clip_gelu", scan_layers=True)
    return model, variables, *images_and_texts(io)[:2]


@pytest.fixture(scope="module")
def tokenizer():
    """Return a tokenizer of words whose texts end with the id of the tiny models."""
    pytest.importorskip("tokenizers", reason="needs peftjax[text]")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = "a photo of cat big dog boat drawing . ,".split()
    vocabulary = {word: 5 + i for i, word in enumerate(words)}
    vocabulary |= {"<unk>": 3, "<|startoftext|>": 44, "<|endoftext|>": 45}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 44), ("<|endoftext|>", 45)],
    )
    return made


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_original(name, scan):
    model, variables, io = reference(MODELS / name, scan_layers=scan)
    images, ids, mask = images_and_texts(io)
    logits, hidden = run(model, variables, images, ids, mask)
    close(logits, io["logits_per_image"])
    check_hidden_states(hidden["image"], part(io, "image"), np.ones((4, 17), bool))
    check_hidden_states(hidden["text"], part(io, "text"), mask == 1)


@pytest.mark.parametrize("name", NAMES)
def test_each_tower_equals_the_original(name):
    model, variables, io = reference(MODELS / name)
    images, ids, mask = images_and_texts(io)
    params, config = variables["params"], model.config

    @jax.jit
    def towers(variables, images, ids):
        image, text = (variables["params"][name] for name in ("image", "text"))
        return (
            ImageTower(config.vision).apply({"params": image}, images),
            # Attention is causal, so the mask of what follows the end is for nothing.
            TextTower(config.text).apply({"params": text}, ids),
            model.apply(variables, images, method="image_features"),
            model.apply(variables, ids, method="text_features"),
        )

    image, text, image_features, text_features = towers(variables, images, ids)
    close(image.pooled, io["image.pooler_output"])
    close(text.pooled, io["text.pooler_output"])
    close(image.hidden, io["image.last_hidden_state"])
    close(text.hidden, io["text.last_hidden_state"], mask == 1)
    for found, recorded in ((image_features, "image"), (text_features, "text")):
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        close(unit, io[f"{recorded}_embeds"])
    assert params["logit_scale"].shape == ()


def test_remat_changes_neither_value_nor_gradient(clip):
    model, variables, images, ids = clip

    def value_and_gradient(remat):
        def loss(params):
            applied = model.clone(remat=remat).apply({"params": params}, images, ids)
            return (applied**2).sum()

        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    jax.tree.map(close, value_and_gradient(True), value_and_gradient(False))


def test_zero_shot_from_prompts(clip, tokenizer):
    model, variables, images, _ = clip
    found = class_embeddings(model, variables, tokenizer, CLASSES, TEMPLATES, batch=4)
    embed = jax.jit(partial(model.apply, method="text_features"))
    for row, name in zip(found, CLASSES):
        each = []
        for template in TEMPLATES:
            ids = tokenizer.encode(template.format(name)).ids
            ids = jnp.array([ids + [9] * (14 - len(ids))])
            feature = embed(variables, ids)[0]
            each.append(feature / np.linalg.norm(feature))
        mean = sum(each) / len(each)
        close(row, mean / np.linalg.norm(mean))
    logits = jax.jit(partial(zero_shot, model))(variables, images, found)
    features = jax.jit(partial(model.apply, method="image_features"))(variables, images)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    scale = np.exp(variables["params"]["logit_scale"])
    close(logits, scale * (features @ found.T))


def test_prompts_that_cannot_be_used(clip, tokenizer):
    model, variables, _, _ = clip
    for classes, templates in (([], TEMPLATES), (CLASSES, ()), (CLASSES, ("a cat",))):
        with pytest.raises(ValueError, match="expected classes and templates"):
            class_embeddings(model, variables, tokenizer, classes, templates)
    many = [f"{{}} in picture {i}" for i in range(80)]
    with pytest.raises(ValueError, match="81 templates; 'a cat' has none$"):
        class_embeddings(model, variables, tokenizer, CLASSES, [*many, "a cat"])
    with pytest.raises(ValueError, match="ends every text with id 40.*found 45"):
        text = {**vars(model.config.text), "eos_token_id": 40}
        config = ClipConfig(text=type(model.config.text)(**text), projection_dim=12)
        other = model.clone(config=config)
        class_embeddings(other, variables, tokenizer, CLASSES)


def test_a_head_that_starts_from_text_embeddings(tmp_path, clip, tokenizer):
    """Adapt it, train a step's worth of statistics, and take the tower back."""
    model, variables, images, ids = clip
    text = class_embeddings(model, variables, tokenizer, CLASSES)
    classifier, own = image_classifier(model, variables, text)
    assert isinstance(classifier, ClipClassifier)
    features = jax.jit(partial(model.apply, method="image_features"))(variables, images)
    # Mean 0 and variance 1 before any training.
    expected = features @ text.T / np.sqrt(1 + 1e-5)
    close(jax.jit(classifier.apply)(own, images), expected)

    chosen = rules("clip", pj.Hydra(rank=2, branch_bias=True))
    peft = pj.adapt(classifier.apply, own, images, rules=chosen, strict=True)
    assert {site.path for site in peft.sites} == {
        "image/layers/mlp/fc2/kernel",
        "head/kernel",
        "head/bias",
    }
    adapters = peft.init(jax.random.key(0), own)
    close(jax.jit(peft.apply)(own, adapters, images), expected)

    def training(own, adapters):
        return peft.apply(own, adapters, images, train=True, mutable=["batch_stats"])

    trained, updates = jax.jit(training)(own, adapters)
    mean, variance = features.mean(axis=0), features.var(axis=0)
    standard = (features - mean) / np.sqrt(variance + 1e-5)
    # Division by deviations below 1 raises the rounding of the features.
    close(trained, standard @ text.T, eps=EPS / float(np.sqrt(variance.min())))
    stats = updates["batch_stats"]["norm"]
    close(stats["mean"], 0.1 * mean)
    close(stats["var"], 0.9 + 0.1 * variance)

    shifted = jax.tree.map(lambda leaf: leaf + 0.05, adapters)
    merged = jax.jit(peft.merge)(own, shifted)
    adapted = jax.jit(peft.apply)(own, shifted, images)
    close(jax.jit(classifier.apply)(merged, images), adapted)
    assert np.abs(adapted - expected).max() > 1e-3, "the adapters have no effect"
    with pytest.raises(ValueError, match="ClipClassifier has no equal.*back into"):
        save(tmp_path / "out", classifier, merged)
    whole = {**variables["params"], "image": merged["params"]["image"]}
    assert jax.jit(model.apply)({"params": whole}, images, ids).shape == (4, 3)
    with pytest.raises(ValueError, match=r"expected embeddings \[classes, 12\]"):
        image_classifier(model, variables, text[:, :3])


def test_adapters_on_scanned_and_unrolled_towers(clip):
    scanned, _, images, ids = clip
    chosen = {
        **rules("clip", pj.LoRA(rank=2, alpha=3.0), head=False),
        r"text/layers(_\d+)?/mlp/fc\d/kernel": pj.HRA(rank=2),
    }
    results, adapters, rng = [], {}, np.random.default_rng(0)
    for scan in (False, True):
        model, variables = load(MODELS / "clip_gelu", scan_layers=scan)
        peft = pj.adapt(model.apply, variables, images, ids, rules=chosen, strict=True)
        assert all(site.fast for site in peft.sites)
        if scan:
            assert model == scanned
            adapters = stack_layers(adapters, "layers")
        else:
            assert len(peft.sites) == 8
            adapters = jax.tree.map(
                lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype("f"),
                peft.init(jax.random.key(0), variables),
            )
        results.append(jax.jit(peft.apply)(variables, adapters, images, ids))
    close(results[1], results[0])


@pytest.mark.parametrize("scan", [False, True])
def test_hydra_on_the_image_tower_has_the_released_count(scan):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    config = ClipConfig()
    chosen = rules("clip", pj.Hydra(rank=2, branch_bias=True), head=False)
    for model, inputs in (
        (Clip(config, scan_layers=scan), (images, ids)),
        (ClipClassifier(config.vision, 512, 10, scan_layers=scan), (images,)),
    ):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        peft = pj.adapt(model.apply, variables, *inputs, rules=chosen, strict=True)
        assert sum(site.trainable for site in peft.sites) == 147_504
        assert all(site.fast for site in peft.sites)


@pytest.fixture
def copy(tmp_path):
    """Return a copy of a checkpoint, with its `config.json` changed by a function."""

    def make(change, name="clip"):
        path = shutil.copytree(MODELS / name, tmp_path / "copy")
        config = json.loads((path / "config.json").read_text())
        change(config)
        (path / "config.json").write_text(json.dumps(config))
        return path

    return make


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        (None, {"architectures": ["CLIPForImageClassification"]}, "architectures"),
        (None, {"model_type": "clip_vision_model"}, "'clip_vision_model'.*like clip"),
        (None, {"projection_dim": 24}, r"expected shape \(24, 32\)"),
        (None, {"text_config": [1]}, "text_config: expected an object"),
        ("text", {"eos_token_id": [2, 3]}, "text_config: eos_token_id: expected a num"),
        ("text", {"max_position_embeddings": 9}, r"expected shape \(9, 24\)"),
        ("vision", {"image_size": [16, 16]}, "vision_config: image_size: expected a"),
        ("vision", {"hidden_act": "mish"}, "vision_config: hidden_act: .*mish"),
        ("vision", {"num_channels": 1}, r"expected shape \(32, 1, 4, 4\)"),
        ("vision", {"num_hidden_layers": 3}, "image/layers_2"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(copy, tower, changes, message):
    def change(config):
        (config[f"{tower}_config"] if tower else config).update(changes)

    with pytest.raises(CheckpointError, match=message):
        load(copy(change))


def test_what_older_files_say_twice(copy):
    """Their `text_config_dict` decides, all of it."""

    def change(config):
        config["text_config_dict"] = {**config["text_config"], "eos_token_id": 45}
        config["vision_config_dict"] = None

    model, _ = load(copy(change))
    assert model.config.text.eos_token_id == 45
    assert model.config.vision == load(MODELS / "clip")[0].config.vision


def test_bad_arguments(tmp_path, clip):
    model, variables, images, ids = clip
    with pytest.raises(ValueError, match="image_classifier makes one"):
        load(MODELS / "clip", head=3)
    for wrong in (images[:, :8], images[..., :1], images.astype(np.int32)):
        with pytest.raises(ValueError, match=r"images \[batch, 16, 16, 3\], found"):
            model.apply(variables, wrong, ids)
    with pytest.raises(ValueError, match="at most 14 tokens"):
        model.apply(variables, images, np.ones((1, 15), np.int32))
    with pytest.raises(ValueError, match="logit_scale"):
        params = {k: v for k, v in variables["params"].items() if k != "logit_scale"}
        save(tmp_path / "out", model, {"params": params})
