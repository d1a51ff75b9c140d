"""Many runs: which a table is made of, and how several processes do them all."""

from __future__ import annotations

from experiments.table.fill import fill as fill
from experiments.table.plan import folder as folder
from experiments.table.plan import plan as plan
