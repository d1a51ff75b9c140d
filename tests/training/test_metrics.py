"""The numbers of a run: metrics.jsonl."""

import json

import pytest

from peftjax.training.errors import RunFileError
from peftjax.training.metrics import MetricsFile, read_metrics
from tests.helpers.run_case import run


def test_no_output_where_there_is_no_terminal(tmp_path, capfd):
    run(tmp_path, steps=2)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize(
    "line",
    [
        b'{"st',
        b"\xff\xfe",
        b"[" * 100_000 + b"]" * 100_000,
        b"[1]",
        b"null",
        b'{"loss": 1.0}',
        b'{"step": NaN}',
        b'{"step": 2.0}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": 2, "loss": NaN}',
        b'{"step": 2, "loss": 1e400}',
        b'{"step": 2, "loss": "0.5"}',
        b'{"step": 2, "eval": {"accuracy": null}}',
        b'{"step": 2, "eval": [1]}',
        b'{"step": 2, "loss": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_damaged_metrics_file_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(RunFileError, match=r"metrics\.jsonl, line 2: ") as error:
        MetricsFile(path, after=3)
    assert len(str(error.value)) < 700
    assert path.read_bytes().count(b"\n") == 3


def test_a_metrics_file_is_cut_where_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "eval": {"pearson": NaN}}\n{"step": 3}\n{"ste')
    assert len(read_metrics(path)) == 2
    for content, what in (
        (b"\x1f\x8b\x08", "not JSON"),
        (b'{"step": 3}\n{"step": 2}\n', "of 3 or more, found 2"),
    ):
        (tmp_path / "other.jsonl").write_bytes(content)
        with pytest.raises(RunFileError, match=rf"other\.jsonl.*{what}"):
            read_metrics(tmp_path / "other.jsonl")
    MetricsFile(path, after=2).write({"step": 4})
    assert [json.loads(line)["step"] for line in path.open()] == [1, 4]
