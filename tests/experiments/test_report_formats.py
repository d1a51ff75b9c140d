"""The formats of a table, and what happens where it cannot be read or written."""

import csv
import errno
import json
import re

import numpy as np
import pytest

from experiments import report
from experiments.report.__main__ import main
from experiments.report.labels import label
from tests.helpers.report_case import (
    ALL,
    FILES,
    GLUE,
    below,
    failed,
    fill,
    result,
    written,
)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Leave out what takes a second each time."""
    monkeypatch.setattr(report.plot, "png", lambda *_: b"no picture")


def test_the_csv_reads_back(tmp_path):
    document = written(fill(tmp_path, ALL, published=GLUE))
    with (tmp_path / "table.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 6
    for line in lines:
        (row,) = [x for x in document["rows"] if x["method"] == line["method"]]
        score = row["scores"][line["task"]]
        for key in ("mean", "std", "difference"):
            assert float(line[key]) == pytest.approx(score[key])
        assert float(line["published"]) == pytest.approx(score["published"]["value"])
        assert line["source"] == score["published"]["source"]
        assert (line["metric"], line["selection"]) == ("accuracy", "last")
        assert line["settings"] == "a1b2c3d4e5"


def test_latex_is_escaped_and_rectangular(tmp_path):
    awful = r"50% of #1 & $x_2^3$ {~\now} <|> lost -- a–b −1"
    runs = [result("a_b", "m%&", 0, 0.5), failed("a_b", "hra_0", 0, awful)]
    published = {**GLUE, "methods": {"m%&": "LoRA r=8"}, "tasks": {"a_b": "CoLA"}}
    written(fill(tmp_path, runs, published=published))
    text = (tmp_path / "table.tex").read_text()
    body = text.partition("\n")[2]
    (tabular,) = re.findall(r"\\toprule\n(.*)\\bottomrule", body, flags=re.S)
    columns = re.search(r"\{tabular\}\{(l r*|lr*)\}", body)
    assert columns is not None
    rows = [line for line in tabular.splitlines() if line != r"\midrule"]
    assert (
        r"m\%\& & 50.0 [" not in body and r"\quad published & [69.82, $-$19.8]" in body
    )
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1
    (note,) = [line for line in body.splitlines() if "raggedright" in line]
    expected = (
        r"50\% of \#1 \& \$x\_2\textasciicircum{}3\$ \{\textasciitilde{}"
        r"\textbackslash{}now\} \textless{}\textbar{}\textgreater{} lost -{}- "
        r"a\textendash{}b $-$1"
    )
    assert expected in note
    plain = re.sub(
        r"\\[a-zA-Z]+|\\[&%$#_{}]", "", note.replace("$-$", "").replace("$\\pm$", "")
    )
    assert not re.search(r"[\\%#&$_~^|<>]", plain) and note.isascii()


def test_the_captions_tell_how_the_epoch_was_chosen(tmp_path):
    def told(name, selection, note):
        runs = [result("a", "lora", 0, 0.5, note=note)]
        workdir = fill(tmp_path / name, runs, selection=selection)
        caption = written(workdir)["caption"]
        text = (workdir / "table.tex").read_text()
        loud = caption["loud"]
        assert (rf"\textbf{{{loud}}}" in text) == (f"**{loud}**" in below(workdir))
        assert (rf"\textbf{{{loud}}}" in text) == bool(loud)
        return loud, " ".join(caption["sentences"])

    test, development = "test split", "GLUE development set"
    loud, rest = told("last", "last", test)
    assert not loud and "Evaluated after the last step." in rest and test in rest
    loud, rest = told("val", "best_on_validation", test)
    assert not loud and "best epoch on the validation split" in rest
    loud, rest = told("test", "best_on_test", test)
    assert loud.startswith("Chosen on the test split, as some papers do: optimistic")
    loud, rest = told("dev", "best_on_validation", development)
    assert loud.startswith("Chosen on the development set that is reported")
    assert development in rest


@pytest.mark.parametrize("broken", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, broken):
    fill(tmp_path, ALL)
    report.write(tmp_path)
    for file in FILES:
        (tmp_path / file).write_text("of before")
    names = {path.name for path in tmp_path.iterdir()}

    def full(*args):
        if broken != "os.replace":
            with open(args[0], "wb") as stream:
                stream.write(args[1][:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(broken, full)
    with pytest.raises(OSError, match="No space left"):
        report.write(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == names
    for file in set(FILES) - {"table.json"}:
        assert (tmp_path / file).read_text() == "of before"


def bad(change):
    """Return a function that spoils a folder."""

    def spoil(workdir):
        file = workdir / "plan.json"
        plan = json.loads(file.read_text())
        change(plan)
        file.write_text(json.dumps(plan))

    return spoil


RESULT = "cola/lora-a1b2c3d4e5/seed0/result.json"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda x: (x / "plan.json").unlink(),
            r"plan\.json: expected .* found none; give",
        ),
        (
            lambda x: (x / "plan.json").write_text("{"),
            r"plan\.json: expected JSON.*again",
        ),
        (
            bad(lambda x: x.pop("table")),
            r"plan\.json: .*missing required field `table`",
        ),
        (bad(lambda x: x["runs"].clear()), r"plan\.json: expected runs, found none"),
        (
            bad(lambda x: x["runs"][0].pop("seed")),
            r"plan\.json: .*`seed` - at `\$\.runs\[0\]`",
        ),
        (bad(lambda x: x["runs"][0].update(folder="../x/y")), "leads out of"),
        (
            lambda x: (x / RESULT).write_text('{"status"'),
            r"seed0/result\.json: .*delete",
        ),
        (
            lambda x: (x / RESULT).write_bytes(b"\xff\0"),
            r"seed0/result\.json: expected",
        ),
        (lambda x: (x / RESULT).write_text("[]"), r"seed0/result\.json: Expected `obj"),
        (
            lambda x: (x / RESULT).write_text("{}"),
            r"result\.json: .*missing required field `status`",
        ),
        (
            lambda x: (x / RESULT).write_text("[" * 100_000),
            r"seed0/result\.json: expected JSON",
        ),
        (
            lambda x: (x / RESULT).write_text(
                json.dumps(result("cola", "lora", 0, 0.5, status="done"))
            ),
            r"seed0/result\.json: Invalid value 'done' - at `\$\.status`",
        ),
        (
            bad(lambda x: x["runs"].append({**x["runs"][0]})),
            r"plan\.json: .*seed0 is planned twice",
        ),
        (
            lambda x: (x / RESULT).write_text(
                json.dumps(result("cola", "lora", 1, 0.5))
            ),
            r"seed0/result\.json: expected seed 0, found 1: .* another run; delete",
        ),
        (
            bad(lambda x: x["table"].update(groups={"cola": "one"})),
            "table.groups has no group for mrpc",
        ),
        (
            bad(lambda x: x["table"].update(published={**GLUE, "file": "glu_hra.csv"})),
            r"unknown file of .*published 'glu_hra\.csv': did you mean glue_hra\.csv",
        ),
        (
            bad(lambda x: x["table"].update(published={**GLUE, "backbone": "DeBERTa"})),
            "DeBERTaV3-base",
        ),
        (
            bad(
                lambda x: x["table"].update(
                    published={**GLUE, "methods": {"a": "LoRA r8"}}
                )
            ),
            r"unknown method of glue_hra\.csv.*'LoRA r8': did you mean LoRA r=8\?",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_its_path(tmp_path, spoil, told):
    spoil(fill(tmp_path, ALL))
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    message = caught.value.code
    assert isinstance(message, str) and len(message.splitlines()) == 1
    assert re.search(told, message), message
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("table")]


def test_names_in_the_picture_do_not_cover_each_other():
    from matplotlib.figure import Figure

    rng = np.random.default_rng(0)
    points = [(f"method{i}", x, y) for i, (x, y) in enumerate(rng.random((12, 2)))]
    axes = Figure(figsize=(7, 4.5)).subplots()
    for _, x, y in points:
        axes.errorbar(x, y, 0.05)
    label(axes, points, [(x, y, 0.05) for _, x, y in points])
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == len(points)
    frame = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other in boxes[:i])
        centres = [axes.transData.transform(point[1:]) for point in points]
        assert not any(box.contains(*centre) for centre in centres)
