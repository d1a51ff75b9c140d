"""The process of noise: the original's numbers, its file, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from peftjax.diffusion import NoiseSchedule, add_noise, noised, read_schedule, target
from peftjax.models import CheckpointError
from tests.diffusion.cases import SETTINGS, recorded


@pytest.mark.parametrize("name", SETTINGS)
def test_noise_and_targets_are_those_of_the_original(name):
    schedule, io = SETTINGS[name], recorded()
    x, noise, t = io["x"], io["noise"], jnp.asarray(io["t"], jnp.int32)
    found = add_noise(schedule, x, noise, t)
    np.testing.assert_allclose(found, io[f"noised.{name}"], atol=2e-6)
    if schedule.prediction_type == "epsilon":
        assert target(schedule, x, noise, t) is noise
    else:
        found = target(schedule, x, noise, t)
        np.testing.assert_allclose(found, io[f"velocity.{name}"], atol=2e-6)


def test_examples_of_the_objective_follow_from_their_key():
    schedule, x = NoiseSchedule(num_train_timesteps=50), jnp.ones((64, 3))
    make = jax.jit(lambda key: noised(schedule, x, key))
    x_t, t, noise = make(jax.random.key(0))
    np.testing.assert_allclose(x_t, add_noise(schedule, x, noise, t), atol=1e-6)
    assert 0 <= t.min() < 10 and 40 < t.max() < 50
    for first, second in zip((x_t, t, noise), make(jax.random.key(0))):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(make(jax.random.key(1))[2], noise)


# As in the files of Stable Diffusion 1.5, 2.1 and XL.
FILES = {
    "PNDMScheduler": {"set_alpha_to_one": False, "skip_prk_steps": True},
    "DDIMScheduler": {"set_alpha_to_one": False, "trained_betas": None},
    "EulerDiscreteScheduler": {
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
}


def write(folder, **entries):
    (folder / "scheduler_config.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_the_file_of_a_pipeline_is_read(tmp_path, name):
    entries = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
        "num_train_timesteps": 1000,
        **FILES[name],
    }
    folder = write(tmp_path, _class_name=name, **entries)
    assert read_schedule(folder) == NoiseSchedule()
    velocity = write(folder, _class_name=name, prediction_type="v_prediction")
    assert read_schedule(velocity).prediction_type == "v_prediction"
    assert read_schedule(velocity).beta_schedule == "linear"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name: expected"),
        (
            {"prediction_type": "sample"},
            "prediction_type: expected 'epsilon' or 'v_prediction'.*found 'sample'",
        ),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: expected False"),
        ({"thresholding": True}, "thresholding: expected False"),
        ({"beta_start": "0.1"}, "beta_start"),
        ({"beta_end": 2.0}, "0 < beta_start <= beta_end < 1"),
        ({"num_train_timesteps": 0}, "num_train_timesteps: expected 1"),
        ({"steps_offset": -1}, "steps_offset: expected 0"),
    ],
)
def test_what_is_not_computed_here_is_refused(tmp_path, entry, message):
    folder = write(tmp_path, **{"_class_name": "DDIMScheduler", **entry})
    with pytest.raises(CheckpointError, match=message):
        read_schedule(folder)


def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json"):
        read_schedule(tmp_path)
