"""The papers' numbers, `experiments/published/*.csv`, by the names of a table of ours.

A configuration says in `config.table.published` what corresponds to what:

    {
        "file": "glue_hra.csv",
        "backbone": "DeBERTaV3-base",
        "methods": {"lora": "LoRA r=8"},  # ours: the paper's
        "tasks": {"cola": "CoLA"},  # where the names differ
        "metrics": {"stsb": "mean_pearson_spearman"},  # only numbers of this metric
    }
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.arguments import UnknownName, known

FOLDER = Path(__file__).with_name("published")
REQUIRED = ("backbone", "file", "methods")
OPTIONAL = ("metrics", "tasks")


@dataclass(frozen=True)
class Number:
    """One published score.

    Attributes:
        value: as the paper has it, percent.
        source: where it was read; further numbers for the same thing, if any.
        metric: the paper's name of it; empty where the file has none.
    """

    value: float
    source: str
    metric: str = ""

    def __str__(self) -> str:
        text = f"{self.value:.2f}"
        return text.removesuffix("0")


@dataclass(frozen=True)
class Numbers:
    """What one file has for one backbone; nothing where a table names no file.

    Attributes:
        file: its name.
        methods: our name to the paper's.
        tasks: our name to the paper's, where they differ.
        metrics: the paper's metric by our task, where only that one will do.
        lines: of the file, those of the backbone.
    """

    file: str = ""
    methods: Mapping[str, str] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    lines: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def of(cls, table: Any) -> Numbers:
        """Return the numbers that a table's configuration names.

        Args:
            table: `config.table`, or what `plan.json` keeps of it.

        Raises:
            UnknownName: a key, file, backbone, method, task or metric that is not
                there; the nearest are named.

        >>> published = {"file": "vtab1k.csv", "methods": {"hydra": "Hydra"},
        ...     "backbone": "ViT-B/16 (ImageNet-21k supervised)"}
        >>> numbers = Numbers.of({"published": published})
        >>> numbers.score("hydra", "cifar").value, numbers.parameters_m("hydra")
        (72.7, 0.28)
        """
        given = table.get("published")
        if not given:
            return cls()
        for key in given:
            known(key, (*REQUIRED, *OPTIONAL), "key of table.published")
        if missing := [key for key in REQUIRED if key not in given]:
            raise UnknownName(f"table.published: expected {missing[0]!r} too")
        name = known(given["file"], _files(), f"file of {FOLDER}")
        lines = _read(FOLDER / name)
        backbone = known(given["backbone"], _column(lines, "backbone"), f"{name} model")
        lines = tuple(line for line in lines if line["backbone"] == backbone)
        maps = {key: dict(given.get(key) or {}) for key in ("methods", *OPTIONAL)}
        for key, mapped in maps.items():
            one = key.removesuffix("s")
            for value in mapped.values():
                known(value, _column(lines, one), f"{one} of {name}, {backbone}:")
        return cls(name, lines=lines, **maps)

    def score(self, method: str, task: str) -> Number | None:
        """Return the published number of our method on our task, if there is one.

        Of several the first counts, and its source tells the others.
        """
        metric = self.metrics.get(task)
        found = [
            Number(float(line[_value(line)]), line["source"], line.get("metric") or "")
            for line in self._of(method)
            if line["task"] == self.tasks.get(task, task)
            and metric in (None, line.get("metric"))
        ]
        if not found:
            return None
        others = [x for x in found[1:] if x.value != found[0].value]
        told = "".join(f"; also {x} ({x.source})" for x in others)
        return Number(found[0].value, found[0].source + told, found[0].metric)

    def parameters_m(self, method: str) -> float | None:
        """Return the published millions of trainable parameters, if there are any."""
        return float(printed) if (printed := self.printed_m(method)) else None

    def printed_m(self, method: str) -> str:
        """Return them as printed, `"0.20"`; an empty text where there are none."""
        found = [line["params_m"] for line in self._of(method) if line["params_m"]]
        return found[0] if found else ""

    def _of(self, method: str) -> list[Mapping[str, str]]:
        name = self.methods.get(method)
        return [line for line in self.lines if line["method"] == name]


def _files() -> list[str]:
    """Return the files that hold scores; the others hold settings."""
    files = sorted(FOLDER.glob("*.csv"))
    return [x.name for x in files if x.read_text().startswith("method,backbone,")]


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _column(lines: Any, name: str) -> list[str]:
    return sorted({line.get(name) or "" for line in lines} - {""})


def _value(line: Mapping[str, str]) -> str:
    return "value" if "value" in line else "accuracy"
