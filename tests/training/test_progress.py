"""What is shown of runs: lines of what they do, live, or now and then in a log."""

import io
import sys
import threading

from peftjax.training import progress
from peftjax.training.progress import BEFORE, FINISHED, Progress


def test_lines_say_what_each_run_does_and_how_long_all_take():
    now = 0.0
    shown = Progress(4, clock=lambda: now)
    shown.tell("early", BEFORE)
    shown.tell("a", "compiling")
    now = 61.0
    assert shown.lines() == ["run 2 of 4: a: compiling, 01:01"]
    shown.tell("a", "step", step=1, steps=101)
    now = 81.0
    shown.tell("a", "step", step=21, steps=101, loss=0.51239, examples_per_s=1234.5)
    (line, every) = shown.lines()
    fast = "01:20 left, loss 0.5124, 1234 examples/s"
    assert line == f"run 2 of 4: a: step 21 of 101, {fast}"
    shown.tell("a", "step", step=21, steps=101)  # between two lines of metrics
    assert shown.lines()[0].endswith(fast)
    # 20 steps took 81 s, and of 303 all but 21 are left
    assert every == "1 of 4 runs done, about 19:02 left"
    shown.tell("a", "evaluating")
    shown.tell("b", "compiling")
    assert shown.lines()[:2] == [
        "run 2 of 4: a: evaluating",
        "run 3 of 4: b: compiling",
    ]
    shown.tell("a", FINISHED)
    shown.tell("b", FINISHED)
    assert shown.lines() == ["3 of 4 runs done, about 00:40 left"]


def test_a_single_run_has_no_number_and_a_resumed_one_its_own_speed():
    now = 0.0
    shown = Progress(clock=lambda: now)
    shown.tell("", "step", step=90, steps=100)
    now = 5.0
    shown.tell("", "step", step=95, steps=100)
    assert shown.lines() == ["step 95 of 100, 00:05 left"]


def test_a_log_has_a_line_now_and_then(monkeypatch, capsys):
    with Progress() as shown:  # a short command writes none
        shown.tell("a", "compiling")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.01)
    written = threading.Event()

    class Log(io.StringIO):
        def write(self, text):
            written.set()
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Log())
    with Progress() as shown:
        for step in range(1, 1000):
            shown.tell("a", "step", step=step, steps=1000)
        assert written.wait(60)
    lines = sys.stderr.getvalue().splitlines()
    assert lines and all(line.startswith("a: step ") for line in lines)


def test_on_a_terminal_what_is_printed_stands_above_the_line(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with Progress() as shown:
        shown.tell("a", "step", step=1, steps=9)
        print("b: accuracy 0.5")
    text = terminal.getvalue()
    assert "a: step 1 of 9" in text and "b: accuracy 0.5" in text
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    with Progress():
        print("into the file")
    assert file.getvalue() == "into the file\n"
