"""The processes whose trajectories `make_scheduler_references.py` recorded."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from peftjax.diffusion import NoiseSchedule

SD = NoiseSchedule(set_alpha_to_one=True)
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SETTINGS = {
    "epsilon": NoiseSchedule(),
    "v": replace(SD, prediction_type="v_prediction"),
    "trailing": NoiseSchedule(timestep_spacing="trailing"),
    "linspace": NoiseSchedule(timestep_spacing="linspace"),
    "cosine": NoiseSchedule(200, beta_schedule="squaredcos_cap_v2"),
    "linear": NoiseSchedule(
        500, **LINEAR, prediction_type="v_prediction", clip_sample=True
    ),
}


def recorded():
    """Return the recorded arrays."""
    file = Path(__file__).parents[1] / "files" / "schedulers.npz"
    with np.load(file) as arrays:
        return dict(arrays)
