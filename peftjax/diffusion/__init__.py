"""Diffusion: the process of noise, and samplers, as pure functions; a pipeline."""

from peftjax.diffusion.pipeline import Pipeline, load_pipeline
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
    "Pipeline",
    "add_noise",
    "ddim",
    "dpm_solver",
    "guided",
    "load_pipeline",
    "noised",
    "predicted",
    "read_schedule",
    "target",
    "timesteps",
]
