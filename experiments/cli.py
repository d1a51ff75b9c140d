"""The command line: flags, the configuration, and errors that are one line."""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from experiments import processes
from experiments.arguments import UnknownName, pairs
from experiments.checks import UnfitSettings, check
from experiments.documents import DamagedFile
from experiments.overrides import override
from experiments.preemption import RESUME_ME, Stopped
from experiments.tasks.task import UnreadableData
from experiments.upstream import UnfitModule
from peftjax import storage
from peftjax.hub.tensors import AdapterFileError
from peftjax.models.files import CheckpointError as ModelError
from peftjax.parallel.distributed import Elsewhere
from peftjax.training.errors import RunFileError
from peftjax.training.loop import NonFiniteLoss, Preempted

CHOICES = ("task", "method", "seed")  # the other settings follow from them


class ConfigError(ValueError):
    """A configuration file cannot be used."""


EXPECTED = (
    AdapterFileError,
    ConfigError,
    DamagedFile,
    ModelError,
    NonFiniteLoss,
    OSError,
    RunFileError,
    UnfitModule,
    UnfitSettings,
    UnknownName,
    UnreadableData,
)
STOPPED = (Preempted, Stopped)
# What all processes of a job raise alike; the first one tells it.
SAME = (ConfigError, Elsewhere, NonFiniteLoss, *STOPPED, UnfitSettings, UnknownName)


@dataclass(frozen=True)
class Source:
    """What the command line says of the configuration.

    Attributes:
        file: of `--config FILE[:ARGUMENT]`.
        argument: its pairs.
        overrides: of `--config.KEY=VALUE`; None where a key stands without a value.
    """

    file: str
    argument: dict[str, str]
    overrides: dict[str, str | None]

    @functools.cached_property
    def get_config(self) -> Callable[[str], Any]:
        """The function of the file that its argument goes to."""
        found = getattr(_module(self.file), "get_config", None)
        if not callable(found):
            raise ConfigError(f"{self.file}: expected a function get_config(arg)")
        return found

    def config(self, **choices: Any) -> ConfigDict:
        """Return the configuration of one run, with these choices instead of the own.

        Raises:
            ConfigError: the file fails, or returns no ConfigDict.
            UnfitSettings: a run could not be done with a setting.
            UnknownName: of a choice or a setting.
        """
        chosen = {**self.argument, **choices}
        argument = ",".join(f"{key}={value}" for key, value in chosen.items())
        with_file = functools.partial(self.get_config, argument)
        config = _guarded(self.file, with_file)
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise ConfigError(
                f"{self.file}: get_config returned {kind}, expected "
                "ml_collections.ConfigDict"
            )
        for key, text in self.overrides.items():
            if key in CHOICES:
                raise ConfigError(f"--config.{key}: give it as --config FILE:{key}=...")
            try:
                override(config, key, text)
            except UnknownName:
                raise
            except ValueError as error:
                raise UnfitSettings(f"{self.file}: {error}") from error
        return check(config, self.file)

    def variant(self) -> str:
        """Return what it says of the settings: `"start=fresh, optim.lr=0.1"`.

        Task, method, seed and paths are left out.
        """
        told = [*sorted(self.argument.items()), *sorted(self.overrides.items())]
        return ", ".join(
            f"{key}={value}"
            for key, value in told
            if key not in CHOICES and not key.startswith("paths.")
        )


class Parser(argparse.ArgumentParser):
    """Flags of a command: every error is one line.

    Args:
        doc: the command's docstring.
        config: whether it takes `--config`.
    """

    def __init__(self, doc: str | None, *, config: bool = True):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if config:
            self.add_argument(
                "--config",
                metavar="FILE[:KEY=VALUE,...]",
                required=True,
                help="configuration, configs/NAME.py, and its choices; "
                "--config.KEY=VALUE replaces a setting, --config.optim.lr=1e-3 for one",
            )
            processes.add_flags(self)
        self._config = config

    def error(self, message: str) -> Any:
        """Exit with one line."""
        raise SystemExit(f"{message}; --help lists the flags")

    def flag(self, name: str, **settings: Any) -> None:
        """Add `--dry-run`, which is `--dry_run` too."""
        self.add_argument(
            *dict.fromkeys([name, "--" + name[2:].replace("-", "_")]), **settings
        )

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Return the flags, `config` as a `Source`; join the job they speak of.

        Raises:
            CannotJoin: the processes of the job do not come together.
        """
        given = list(sys.argv[1:] if argv is None else argv)
        overrides: dict[str, str | None] = {}
        if self._config:
            given, overrides = _split(given)
        options, rest = self.parse_known_args(given)
        if rest:
            self.error(self._unknown(rest))
        if self._config:
            processes.join(options)
            file, _, argument = options.config.partition(":")
            options.config = Source(file, pairs(argument), overrides)
        return options

    def _unknown(self, rest: list[str]) -> str:
        flags = [flag for flag in rest if flag.startswith("-")]
        if not flags:
            return f"unexpected arguments {rest}; flags start with --"
        name = flags[0].partition("=")[0]
        near = get_close_matches(name, self._option_string_actions, 1)
        hint = f": did you mean {near[0]}?" if near else ""
        return f"unknown flag {name}{hint}"


def names(text: str) -> list[str]:
    """Return the names of `--methods a,b`."""
    return [part for part in text.split(",") if part]


def rates(text: str) -> list[float]:
    """Return the numbers of `--grid 1e-3,1e-2`."""
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers") from None


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:12]) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def folder(text: str) -> Path:
    """Return a folder that was named; the current one is not, by an empty text."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder, found an empty text")
    return storage.path(text)


def quieten() -> None:
    """Leave out what orbax reports: every file it opens, one error once per thread."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command's `main(argv=None)`: expected failures exit with one line.

    In a job of several processes any failure ends this process, and so the job.
    """

    @functools.wraps(main)
    def call(argv: Sequence[str] | None = None) -> Any:
        quieten()
        try:
            return main(argv)
        except (Exception, SystemExit) as error:
            if jax.distributed.is_initialized():
                _leave(error)
            if isinstance(error, STOPPED):
                print(error, file=sys.stderr)
                raise SystemExit(RESUME_ME) from error
            if isinstance(error, EXPECTED):
                raise SystemExit(f"{type(error).__name__}: {error}") from error
            raise

    return call


def _leave(error: Exception | SystemExit) -> NoReturn:
    """End this process of a job."""
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        processes.fail(code, str(error.code), same=True)
    if isinstance(error, STOPPED):
        processes.fail(RESUME_ME, str(error), same=True)
    if isinstance(error, Elsewhere):
        stopped = error.kind in {kind.__name__ for kind in STOPPED}
        processes.fail(RESUME_ME if stopped else 1, str(error), same=True)
    told = f"{type(error).__name__}: {error}"
    if processes.lost(error):
        told = f"a process of this job is gone; its own output says why ({told:.200})"
        processes.fail(processes.GONE, told, same=False)
    if not isinstance(error, EXPECTED):
        processes.show(error)
    processes.fail(1, told, same=isinstance(error, SAME))


def keep_programs(cache: str) -> None:
    """Keep compiled programs under a folder, so that no second process compiles them.

    JAX's own setting (`JAX_COMPILATION_CACHE_DIR`) goes before.
    """
    if jax.config.jax_compilation_cache_dir is None:
        place = storage.absolute(cache) / "programs"
        jax.config.update("jax_compilation_cache_dir", str(place))
        # by default those of less than a second are not kept
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _split(argv: list[str]) -> tuple[list[str], dict[str, str | None]]:
    """Take `--config.KEY=VALUE` and `--config.KEY VALUE` out of the arguments."""
    rest, overrides, left = [], {}, iter(range(len(argv)))
    for place in left:
        key, equals, value = argv[place].partition("=")
        if not key.startswith("--config."):
            rest.append(argv[place])
            continue
        following = argv[place + 1 : place + 2]
        if not equals and following and not following[0].startswith("--"):
            value, equals = argv[next(left)], "="
        overrides[key.removeprefix("--config.")] = value if equals else None
    return rest, overrides


def _module(file: str) -> Any:
    """Import a configuration file by its path."""
    path = Path(file)
    if not path.is_file():
        near = get_close_matches(file, map(str, Path("configs").rglob("*.py")), 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{file}: no such configuration file{hint}")
    spec = spec_from_file_location("config", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: expected a Python file, NAME.py")
    module, loader = module_from_spec(spec), spec.loader
    _guarded(file, lambda: loader.exec_module(module))
    return module


def _guarded(file: str, call: Callable[[], Any]) -> Any:
    """Call what a configuration file defines; its errors become one line."""
    try:
        return call()
    except UnknownName:
        raise
    except (Exception, SystemExit) as error:
        lines = [x for x in traceback.extract_tb(error.__traceback__)]
        own = [x.lineno for x in lines if Path(x.filename) == Path(file)]
        number = getattr(error, "lineno", None) or (own[-1] if own else None)
        where = f"{file}, line {number}" if number else file
        told = " ".join(str(error).split())
        raise ConfigError(f"{where}: {type(error).__name__}: {told}") from error
