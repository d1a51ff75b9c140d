"""What runs are doing: a live line each on a terminal, in a log one now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, NamedTuple

from peftjax.parallel.distributed import is_main

# `Progress.tell`, or that of one run: without the run's name.
Tell = Callable[..., None]
FINISHED, BEFORE = "finished", "finished before"  # phases that end a run
STEP = "step"  # the phase of training
SHOWN = {"loss": ", loss {:.4g}", "examples_per_s": ", {:.4g} examples/s"}
LOG_SECONDS = 60.0


def silent(*what: str, **facts: float) -> None:
    """Tell nobody."""


class _Going(NamedTuple):
    """A run that is being done."""

    number: int
    phase: str
    since: float  # when the phase began
    facts: dict[str, float] = {}  # of its last step
    start: tuple[float, float] = (0, 0)  # the first step, and when


class Progress:
    """Shows on standard error what the runs of a command are doing; a context.

    On a terminal each run that is being done has a line that changes in place, and what
    is printed meanwhile stands above. Elsewhere the lines are written once in
    `LOG_SECONDS` for each. Of a job of several processes the first one shows.

    Args:
        runs: how many there will be.
        clock: seconds.

    >>> shown = Progress(runs=36, clock=lambda: 0.0)
    >>> shown.tell("mrpc, lora, seed 0", "step", step=5, steps=9, loss=0.25)
    >>> shown.lines()
    ['run 1 of 36: mrpc, lora, seed 0: step 5 of 9, loss 0.25']
    """

    def __init__(self, runs: int = 1, clock: Callable[[], float] = time.monotonic):
        self._runs, self._clock, self._begun = runs, clock, clock()
        self._count = self._finished = self._before = 0
        self._going: dict[str, _Going] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._stack = ExitStack()

    def tell(self, run: str, phase: str, **facts: float) -> None:
        """Take what a run is doing now, from any thread.

        Args:
            run: its name.
            phase: "compiling" for one; `FINISHED` and `BEFORE` end the run.
            **facts: of the phase `STEP`: step and steps, and what `SHOWN` has.
        """
        with self._lock:
            old, now = self._going.get(run), self._clock()
            self._count += old is None
            if phase in (FINISHED, BEFORE):
                self._finished += phase == FINISHED
                self._before += phase == BEFORE
                self._going.pop(run, None)
                return
            one = old or _Going(self._count, phase, now)
            if phase != one.phase:
                one = one._replace(phase=phase, since=now)
            if phase == STEP:
                if facts["steps"] != one.facts.get("steps"):  # of another training
                    one = one._replace(facts={}, start=(facts["step"], now))
                one = one._replace(facts={**one.facts, **facts})
            self._going[run] = one

    def lines(self) -> list[str]:
        """Return a line for each run that is being done, and one of all."""
        # Without the lock: a handler of a signal may print, and come here, in `tell`.
        going, now = dict(self._going), self._clock()
        lines = [self._line(name, one, now) for name, one in going.items()]
        done, worked = self._finished + self._before, float(self._finished)
        worked += sum(_share(one, one.start[0]) for one in going.values())
        left = self._runs - done - sum(_share(one, 0) for one in going.values())
        if self._runs > 1 and worked:
            seconds = (now - self._begun) / worked * max(left, 0)
            told = f"{done} of {self._runs} runs done"
            lines.append(f"{told}, about {_time(seconds)} left" if seconds else told)
        return lines

    def _line(self, name: str, one: _Going, now: float) -> str:
        text = f"run {one.number} of {self._runs}: " if self._runs > 1 else ""
        text += f"{name}: {one.phase}" if name else one.phase
        if one.phase != STEP:
            spent = now - one.since
            return f"{text}, {_time(spent)}" if spent >= 1 else text
        (first, began), step, steps = one.start, one.facts["step"], one.facts["steps"]
        text += f" {step} of {steps}"
        if step > first and now > began:
            text += f", {_time((now - began) / (step - first) * (steps - step))} left"
        for fact, shown in SHOWN.items():
            text += shown.format(one.facts[fact]) if fact in one.facts else ""
        return text

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        def shown() -> Text:
            return Text("\n".join(self.lines()), no_wrap=True, overflow="ellipsis")

        console = Console(stderr=True)
        if not is_main():
            return self
        if console.is_interactive:
            live = Live(
                get_renderable=shown,
                console=console,
                redirect_stdout=sys.stdout.isatty(),
                transient=True,
            )
            self._stack.enter_context(live)
        else:
            thread = threading.Thread(target=self._log, daemon=True)
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(self._ended.set)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _log(self) -> None:
        while not self._ended.wait(LOG_SECONDS * max(len(self._going), 1)):
            text = "".join(f"{line}\n" for line in self.lines())
            sys.stderr.write(text)  # at once, so that no other's line is within
            sys.stderr.flush()


def _share(one: _Going, first: float) -> float:
    """Return the part of a run that was done since its step `first`."""
    return (one.facts["step"] - first) / one.facts["steps"] if one.facts else 0.0


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
