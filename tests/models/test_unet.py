"""The conditional U-Net: the original's outputs, trajectories and files."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from peftjax.diffusion import NoiseSchedule, ddim, guided
from peftjax.models import (
    CheckpointError,
    UNet2DConditionModel,
    UNetConfig,
    family_of,
    load,
    save,
)
from tests.helpers.model_cases import DATA, edit_config, same_tree

UNETS = ("unet_sd15", "unet_sd21", "unet_sdxl")
FOLDER = DATA / "diffusion"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def reference(name, **options):
    """Return model, variables and the record, its images with channels last."""
    model, variables = load(FOLDER / name, **options)
    with np.load(FOLDER / name / "io.npz") as file:
        io = dict(file)
    images = ("sample", "output", "trajectory")
    return model, variables, io | {n: io[n].transpose(0, 2, 3, 1) for n in images}


def added(io):
    return {n: io[n] for n in ("text_embeds", "time_ids") if n in io}


@pytest.mark.parametrize("name", UNETS)
def test_outputs_are_those_of_the_original(name):
    model, variables, io = reference(name, dtype=jnp.float32)
    call = jax.jit(partial(model.apply, **added(io)))
    found = call(variables, io["sample"], io["timestep"], io["context"])
    np.testing.assert_allclose(found, io["output"], atol=1e-5)


def test_twenty_guided_steps_are_those_of_the_original():
    model, variables, io = reference("unet_sd21", dtype=jnp.float32)
    schedule = NoiseSchedule(prediction_type="v_prediction")

    @jax.jit
    def run(variables, x):
        predict = guided(
            partial(model.apply, variables), io["context"], io["empty"], 3.0
        )
        return ddim(predict, schedule, x, steps=20)

    expected = io["trajectory"]
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(
        run(variables, io["sample"]), expected, atol=1e-4 * scale
    )


@pytest.mark.parametrize("name", UNETS)
def test_files_of_the_original_come_back_bit_by_bit(tmp_path, name):
    model, variables = load(FOLDER / name)
    assert isinstance(model, UNet2DConditionModel) and model.dtype == jnp.float16
    save(tmp_path / "again", model, variables, source=FOLDER / name)
    original = load_file(FOLDER / name / WEIGHTS)
    same_tree(original, load_file(tmp_path / "again" / WEIGHTS))
    if name != "unet_sd15":
        return
    save(tmp_path / "own", model, variables, shard_bytes=9000)
    own = json.loads((tmp_path / "own" / "config.json").read_text())
    given = json.loads((FOLDER / name / "config.json").read_text())
    assert own.items() <= given.items()
    again, same = load(tmp_path / "own")
    assert again == model and len(list((tmp_path / "own").glob("*.safetensors"))) > 2
    same_tree(variables, same)


def test_recomputation_takes_each_block_and_transformer():
    model, variables, io = reference("unet_sd15", dtype=jnp.float32)
    inputs = io["sample"], io["timestep"], io["context"]
    for remat, count in ((False, 0), (True, 8 + 4)):
        call = model.clone(remat=remat).apply
        equations = jax.make_jaxpr(call)(variables, *inputs).eqns
        assert sum("remat" in str(e.primitive) for e in equations) == count


@pytest.mark.slow
def test_narrow_types_stay_near():
    model, variables, io = reference("unet_sd15", dtype=jnp.bfloat16)
    call = jax.jit(model.apply)
    found = call(variables, io["sample"], io["timestep"], io["context"])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, io["output"], atol=0.1)


@pytest.fixture
def copy(tmp_path):
    """Return a folder of the U-Net with its files copied."""
    for file in (FOLDER / "unet_sd15").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type: expected None"),
        ({"_class_name": "UNet1DModel"}, "_class_name 'UNet1DModel'"),
        ({"block_out_channels": [8, 10]}, "multiples of norm_num_groups 4"),
        ({"block_out_channels": "8"}, "block_out_channels"),
        ({"attention_head_dim": 3}, "3 heads do not divide 8"),
        ({"attention_head_dim": [2]}, "attention_head_dim: expected a number"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "mirror of the way down"),
        ({"layers_per_block": 2}, "expected shape"),
        ({"transformer_layers_per_block": 0}, "transformer_layers_per_block: expected"),
        ({"addition_embed_type": "text_time"}, "expected projection_class"),
        ({"cross_attention_dim": 7}, "expected shape"),
    ],
)
def test_what_the_model_does_not_compute_is_refused(copy, entry, message):
    edit_config(copy, **entry)
    with pytest.raises(CheckpointError, match=message):
        load(copy)


def test_files_that_do_not_fit_are_refused(copy):
    tensors = load_file(copy / WEIGHTS)
    gone = tensors.pop("mid_block.attentions.0.proj_in.weight")
    save_file(tensors | {"further": gone}, copy / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"mid_block/attentions_0.*further"):
        load(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="found none"):
        load(copy)


def test_inputs_that_do_not_fit_are_refused():
    model, variables, io = reference("unet_sdxl")
    call = partial(jax.eval_shape, model.apply, variables)
    x, t, context = io["sample"], io["timestep"], io["context"]
    text, ids = io["text_embeds"], io["time_ids"]
    for wrong, message in (
        ((x[:, :7], t, context, text, ids), "sides in multiples of 2"),
        ((x[..., :3], t, context, text, ids), r"\[batch, height, width, 4\]"),
        ((x, t, context[..., :5], text, ids), r"expected context \[2, tokens, 6\]"),
        ((x, t, context), r"text_embeds: expected \[2, 5\], found None"),
        ((x, t, context, text, ids[:, :5]), r"time_ids: expected \[2, 6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*wrong)
    with pytest.raises(ValueError, match="UNet2DConditionModel has none"):
        load(FOLDER / "unet_sd15", head=3)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # Published: 860 M and 2.6 B.
        (UNetConfig(), 859_520_964),
        (
            UNetConfig(
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            2_567_463_684,
        ),
    ],
    ids=["sd15", "sdxl"],
)
@pytest.mark.slow
def test_the_published_sizes_have_the_published_counts(config, count):
    model = UNet2DConditionModel(config)
    examples = family_of(model).examples(model, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *examples)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
