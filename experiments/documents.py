"""The JSON that runs, tables, searches and sweeps leave: schemas, and how it is read.

What a file holds beyond its schema is kept and not looked at.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from peftjax.errors import brief

Count = Annotated[int, Meta(ge=0, le=2**53)]
Scores = dict[str, float | None]  # None: not finite


class DamagedFile(ValueError):
    """A file is not what it should be; the message says what to do."""


class PlannedRun(Struct, kw_only=True):
    """One run of a table, in the folder `folder` of the table's."""

    folder: str
    task: str
    method: str
    seed: Count
    selection: str
    variant: str = ""
    abandoned: bool = False

    def __post_init__(self) -> None:
        inside = posixpath.normpath(self.folder)
        if inside.startswith(("/", "..")) or inside == ".":
            raise ValueError(f"{self.folder!r} leads out of the table's folder")


class Shown(Struct):
    """`config.table`, as far as a report reads it."""

    all_methods: list[str] = []
    all_tasks: list[str] = []
    groups: dict[str, str] | None = None
    not_averaged: list[str] = []
    published: dict[str, Any] | None = None
    notes: dict[str, Any] | None = None
    curves: dict[str, dict[str, Count]] | None = None
    efficiency: bool = False
    examined: list[str] = []


class Plan(Struct):
    """`plan.json`: which runs a table is made of, and which files are its own."""

    name: str
    table: Shown
    runs: list[PlannedRun]
    files: list[str] = []

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for run in self.runs:
            if (place := posixpath.normpath(run.folder)) in seen:
                raise ValueError(f"{place} is planned twice")
            seen.add(place)


class Manifest(Struct):
    """`settings.json`: whose a folder is, and which of its files."""

    kind: Literal["run of peftjax"]
    settings: dict[str, Any]
    files: list[str]


class Hardware(Struct):
    """Of a result."""

    cpu: str
    cores: int
    devices: list[str]


class Versions(Struct):
    """Of a result; there are others beside these."""

    python: str
    jax: str
    flax: str


class Configuration(Struct):
    """What names a run, of all its settings."""

    name: str
    task: str
    method: str
    seed: Count
    paths: dict[str, Any]


class Ended(Struct, kw_only=True, tag_field="status"):
    """`result.json`, whatever the status; see `experiments.finetune`."""

    task: str
    method: str
    seed: Count
    metric: str
    note: str
    hardware: Hardware
    versions: Versions
    date: str
    config: Configuration | UnsetType = UNSET
    examples: dict[str, Count] = {}
    majority: float | None = None
    data: list[dict[str, Any]] = []


class Finished(Ended, kw_only=True, tag="finished"):
    """A run that trained to its end."""

    scores: Scores
    trainable: Count
    trainable_without_head: Count
    share: float
    adapter_bytes: Count
    seconds: float | UnsetType = UNSET
    step_seconds: float | UnsetType = UNSET
    bound_seconds: float | UnsetType = UNSET
    step_over_bound: float | UnsetType = UNSET
    merge_difference: float | None = None
    upstream: dict[str, str] = {}
    mixture: dict[str, list[float]] = {}
    token_lengths: dict[str, list[float]] = {}

    def __post_init__(self) -> None:
        if self.metric not in self.scores:
            raise ValueError(f"scores lack the metric {self.metric}")


class Failed(Ended, kw_only=True, tag="failed"):
    """A run whose loss was not finite."""

    error: str


Result = Finished | Failed


class Line(Struct):
    """A line of `sweep.jsonl`; a score of None diverged."""

    key: str
    score: float | None


class Trial(Struct):
    """A line of `search.jsonl`, of `experiments.decay_search`."""

    key: str
    task: str
    method: str
    lr: float
    weight_decay: float
    score: float | None


class Candidate(Struct):
    """A structure that a search has evaluated."""

    genes: list[list[int]]
    parameters: int
    score: float
    generation: Count
    origin: Literal["random", "mutant", "crossover"]


class Generation(Struct):
    """What a generation of a search gave."""

    generation: Count
    random: Count
    mutant: Count
    crossover: Count
    best: float | None
    mean: float | None
    best_so_far: float


class Search(Struct):
    """`search.json`: where a search is; see `peftjax.search.evolve`."""

    search: dict[str, Any]
    archive: Annotated[list[Candidate], Meta(min_length=1)]
    history: Annotated[list[Generation], Meta(min_length=1)]


def read(file: Path, schema: Any, remedy: str) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        DamagedFile: it is not of the schema; the message ends with the remedy.
    """
    content = file.read_bytes()
    try:
        found = msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:
        size = f"{len(content)} bytes"
        raise DamagedFile(
            f"{file}: expected JSON, found {size} ({brief(error)}); {remedy}"
        ) from error
    return check(str(file), found, schema, remedy)


def check(where: str, found: Any, schema: Any, remedy: str) -> dict[str, Any]:
    """Return what was found, if it is of the schema; raises as `read`."""
    try:
        msgspec.convert(found, schema)
    except msgspec.ValidationError as error:
        raise DamagedFile(f"{where}: {error}; {remedy}") from error
    return found
