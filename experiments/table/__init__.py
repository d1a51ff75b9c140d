"""Many runs: which a table is made of, and how several processes do them all."""

from __future__ import annotations

from experiments.table.filling import fill as fill
from experiments.table.planning import folder as folder
from experiments.table.planning import plan as plan
