"""What runs, tables, searches and sweeps leave is read by schemas, and nothing else."""

import json

import pytest

from experiments import documents
from experiments.documents import DamagedFile
from tests.helpers.report_case import failed, result

RUN = {"folder": "a/b/seed0", "task": "a", "method": "b", "seed": 0, "selection": ""}
GENES = {"genes": [[0]], "parameters": 1, "score": 0.5, "generation": 0}
COUNTS = {"generation": 0, "random": 1, "mutant": 0, "crossover": 0}
STATE = {
    "search": {},
    "archive": [{**GENES, "origin": "random"}],
    "history": [{**COUNTS, "best": 0.5, "mean": None, "best_so_far": 0.5}],
}
WHOLE = {
    "plan": (documents.Plan, {"name": "t", "table": {}, "runs": [RUN]}),
    "settings": (
        documents.Manifest,
        {"kind": "run of peftjax", "settings": {}, "files": []},
    ),
    "finished": (documents.Result, result("a", "b", 0, 0.5)),
    "failed": (documents.Result, failed("a", "b", 0)),
    "search": (documents.Search, STATE),
    "sweep": (documents.Line, {"key": "x", "score": None}),
}
CONTENTS = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe{}",
    b'"\xff"',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"status": NaN}',
    b'{"kind": 1e400}',
]


def spoiled(tree):
    """Yield copies of a tree with one leaf or branch gone or of another type."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        for other in (None, [], {"x": 1}, "x", -1, True, 0.5, "9" * 400):
            if type(other) is not type(value):
                copy = tree.copy()
                copy[key] = other
                yield copy
        if isinstance(value, dict | list):
            for inner in spoiled(value):
                copy = tree.copy()
                copy[key] = inner
                yield copy


@pytest.mark.parametrize("name", WHOLE)
def test_anything_else_is_one_line_that_names_the_file(tmp_path, name):
    schema, whole = WHOLE[name]
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps(whole))
    assert documents.read(file, schema, "delete it") == whole
    contents = CONTENTS + [json.dumps(tree).encode() for tree in spoiled(whole)]
    accepted = 0
    for content in contents:
        file.write_bytes(content)
        try:
            documents.read(file, schema, "delete it")
            accepted += 1  # what no schema looks at, such as the settings of a table
        except DamagedFile as error:
            message = str(error)
            assert message.startswith(f"{file}: ") and message.endswith("; delete it")
            assert len(message.splitlines()) == 1 and len(message) < 500
    assert accepted < len(contents) - len(CONTENTS)


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("a/x/../b/seed0", "a/b/seed0 is planned twice"),
        ("../b", "leads out"),
        ("/b", "leads out"),
        ("", "leads out"),
    ],
)
def test_a_plan_is_of_different_runs_in_its_folder(folder, told):
    plan = {**WHOLE["plan"][1], "runs": [RUN, {**RUN, "folder": folder}]}
    with pytest.raises(DamagedFile, match=rf"plan\.json: .*{told}"):
        documents.check("plan.json", plan, documents.Plan, "delete it")
