"""Diffusion: the process of noise, and samplers, as pure functions."""

from peftjax.diffusion.samplers import ddim, dpm_solver, guided, timesteps
from peftjax.diffusion.schedule import (
    NoiseSchedule,
    add_noise,
    noised,
    predicted,
    read_schedule,
    target,
)

__all__ = [
    "NoiseSchedule",
    "add_noise",
    "ddim",
    "dpm_solver",
    "guided",
    "noised",
    "predicted",
    "read_schedule",
    "target",
    "timesteps",
]
