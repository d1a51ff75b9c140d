"""Record what the schedulers of `diffusers` compute.

    pip install torch diffusers
    python tests/references/make_scheduler_references.py tests/files/schedulers.npz

The network is `tanh(1.3 x + t / 1000)`. Names are `SAMPLER.SETTING.STEPS`, settings as
in `SETTINGS`. Nothing of peftjax is used here.
"""

import sys

import diffusers
import numpy as np
import torch

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SETTINGS = {
    "epsilon": {**SD, "prediction_type": "epsilon"},
    "v": {**SD, "prediction_type": "v_prediction"},
    "trailing": {**SD, "timestep_spacing": "trailing"},
    "linspace": {**SD, "timestep_spacing": "linspace"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    "linear": {"num_train_timesteps": 500, "prediction_type": "v_prediction"},
}


def sample(scheduler, x, steps, **options):
    """Return the last of a trajectory."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = torch.tanh(1.3 * x + t / 1000)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x.numpy()


def main(path):
    """Write the file."""
    rng = np.random.default_rng(0)
    x, noise = (rng.normal(size=(3, 2, 4)).astype(np.float32) for _ in range(2))
    start, epsilon = torch.from_numpy(x), torch.from_numpy(noise)
    t = torch.tensor([0, 150, 199])
    found = {"x": x, "noise": noise, "t": t.numpy()}
    for name, entries in SETTINGS.items():
        ddpm = diffusers.DDPMScheduler(**entries)
        found[f"noised.{name}"] = ddpm.add_noise(start, epsilon, t).numpy()
        found[f"velocity.{name}"] = ddpm.get_velocity(start, epsilon, t).numpy()
        leading = {"timestep_spacing": "leading", "steps_offset": 1, **entries}
        for steps in (1, 7, 20):
            ddim = diffusers.DDIMScheduler(
                **leading, clip_sample=name == "linear", set_alpha_to_one=name == "v"
            )
            found[f"ddim.{name}.{steps}"] = sample(ddim, start, steps)
            dpm = diffusers.DPMSolverMultistepScheduler(**leading)
            found[f"dpm.{name}.{steps}"] = sample(dpm, start, steps)
    ddim = diffusers.DDIMScheduler(
        **SD, steps_offset=1, clip_sample=False, set_alpha_to_one=False
    )
    for name, z in (("mean", 0.0), ("one", 1.0)):
        given = {"eta": 1.0, "variance_noise": torch.full_like(start, z)}
        found[f"eta.{name}"] = sample(ddim, start, 1, **given)
    np.savez_compressed(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
