"""Many runs, done by several processes."""

from __future__ import annotations

from experiments.table.cores import fill_by_core as fill_by_core
from experiments.table.devices import fill_by_device as fill_by_device
from experiments.table.runs import clear as clear
from experiments.table.runs import fill as fill
