"""Many runs, done by several processes."""

from __future__ import annotations

from experiments.table.runs import fill as fill
