"""Run a script: flag errors and expected failures are one line, not a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.arguments import UnknownName
from experiments.report.runs import DamagedFile
from peftjax.hub.tensors import AdapterFileError
from peftjax.models.files import CheckpointError as ModelError
from peftjax.training.checkpoint import CheckpointError
from peftjax.training.loop import NonFiniteLoss

EXPECTED = (
    AdapterFileError,
    CheckpointError,
    DamagedFile,
    ModelError,
    NonFiniteLoss,
    OSError,
    UnknownName,
)


CHOICES = ("task", "method", "seed")  # the other settings follow from them


def define_config() -> flags.FlagHolder:
    """Define `--config FILE[:ARGUMENT]` and `--config.KEY=VALUE`."""
    return config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARGUMENT]")


def configured(**choices: Any) -> ConfigDict:
    """Return the configuration of one run: `--config`'s file asked for these choices.

    It is what `--config FILE:task=..,method=..` gives, with every `--config.KEY=VALUE`
    of the command line set in it.
    """
    flag = flags.FLAGS["config"]
    file, _, given = config_flags.get_config_filename(flag).partition(":")
    pairs = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    argument = ",".join(f"{key}={x}" for key, x in {**pairs, **choices}.items())
    config = _module(file).get_config(argument)
    config.update_from_flattened_dict(config_flags.get_override_values(flag))
    return config


def variant() -> str:
    """Return what the command line says of the settings: `"start=fresh, optim.lr=0.1"`.

    Task, method, seed and paths are left out.
    """
    flag = flags.FLAGS["config"]
    _, _, given = config_flags.get_config_filename(flag).partition(":")
    pairs = [part.split("=", 1) for part in sorted(given.split(",")) if "=" in part]
    pairs += sorted(config_flags.get_override_values(flag).items())
    told = [f"{k}={x}" for k, x in pairs if k not in CHOICES and k[:6] != "paths."]
    return ", ".join(told)


@functools.cache
def _module(file: str) -> Any:
    spec: Any = spec_from_file_location("config", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(main: Callable[[], Any]) -> None:
    """Parse the flags and call `main`; exit with status 1 on an expected failure.

    Compiled programs are kept under `paths.cache`, unless JAX's own setting names
    another folder, so that a second process does not compile them again.
    """

    def call(argv: list[str]) -> None:
        if argv[1:]:
            sys.exit(f"unexpected arguments {argv[1:]}; flags start with --")
        logging.set_verbosity(logging.WARNING)  # orbax reports every file it opens
        if jax.config.jax_compilation_cache_dir is None:
            cache = Path(flags.FLAGS["config"].value.paths.cache, "programs")
            jax.config.update("jax_compilation_cache_dir", str(cache.absolute()))
        try:
            main()
        except EXPECTED as error:
            sys.exit(f"{type(error).__name__}: {error}")

    flags.mark_flag_as_required("config")
    app.run(call, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    argv = [_underscored(argument) for argument in argv]
    try:
        rest = flags.FLAGS(argv)
        _ = flags.FLAGS["config"].value.name  # a missing file shows here
        for key in config_flags.get_override_values(flags.FLAGS["config"]):
            if key in CHOICES:
                sys.exit(f"--config.{key}: give it as --config FILE:{key}=...")
    except (flags.Error, OSError) as error:
        # ml_collections puts a traceback above the message of `get_config`.
        sys.exit(str(error).strip().splitlines()[-1].strip())
    except (AttributeError, KeyError):
        config = flags.FLAGS["config"].parser.parse(_argument(argv))
        for argument in argv:
            if argument.startswith("--config."):
                key = argument.partition("=")[0].removeprefix("--config.")
                _check_key(config, key.split("."))
        raise
    return rest


def _underscored(argument: str) -> str:
    """Return `--dry_run` for `--dry-run`: flags are known by both names."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name.startswith("--config"):
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def _argument(argv: list[str]) -> str:
    """Return the value of `--config`."""
    for argument, following in zip(argv, [*argv[1:], ""]):
        if argument == "--config":
            return following
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return ""


def _check_key(config: ConfigDict, names: list[str]) -> None:
    """Exit if there is no such key, naming the nearest one."""
    for depth, name in enumerate(names):
        if not isinstance(config, ConfigDict) or name not in config:
            valid = list(config) if isinstance(config, ConfigDict) else []
            near = get_close_matches(name, valid, 1) or valid
            prefix = ".".join(["--config", *names[:depth]])
            sys.exit(
                f"unknown key {prefix}.{name}: did you mean "
                + (" or ".join(f"{prefix}.{key}" for key in near) or f"{prefix}=...")
                + "?"
            )
        config = config[name]
