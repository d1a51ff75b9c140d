"""The errors of a run's files that cannot be used."""

from __future__ import annotations


class RunFileError(ValueError):
    """A file of a run is damaged, or of another run.

    The message names the file, the reason and what to do.
    """


class CheckpointError(RunFileError):
    """A checkpoint cannot be used."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is truncated or was changed after it was written."""
