"""What a user meets on the command line, and what importing costs."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments import checks, cli
from experiments.finetune import main as finetune
from experiments.overrides import override
from experiments.table.__main__ import main as table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/quickstart.py:method=lora"


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def refused(*argv, main=finetune):
    """Return what the user reads."""
    with tempfile.TemporaryDirectory() as place, pytest.raises(SystemExit) as caught:
        main([*argv, "--workdir", place])
    message = caught.value.code
    assert isinstance(message, str) and len(message.splitlines()) == 1
    return message


def options(*argv):
    return cli.Parser("").read(argv)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.lrr=1", "did you mean --config.optim.lr?"),
        ("optimm.lr=1", "did you mean --config.optim?"),
        ("optim.lr.x=1", "unknown key --config.optim.lr.x"),
        ("zzz=1", "did you mean --config."),
        ("optim.lr=fast", "--config.optim.lr='fast': expected float, as 0.01 is"),
        ("optim=1", "--config.optim: a group of settings"),
        ("optim.lr", "expected --config.optim.lr=VALUE"),
        ("trackers=tensorbord", "unknown tracker 'tensorbord': did you mean tensorb"),
        ("rules=1", "--config.rules='1': expected tuple"),
        ("measure=perhaps", "expected bool"),
    ],
)
def test_an_unknown_key_or_value_is_named_with_the_nearest(override, named):
    assert named in refused(CONFIG, f"--config.{override}")


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda package: None)
    told = refused(CONFIG, "--config.trackers=wandb")
    assert "trackers=wandb: needs wandb: pip install 'peftjax[wandb]'" in told


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("train.batch=0", "train.batch=0: expected a whole number, at least 1"),
        ("train.epochs=0", "train.epochs=0: expected"),
        ("train.epochs=-3", "train.epochs=-3: expected"),
        ("optim.lr=0", "optim.lr=0.0: expected a finite number above 0"),
        ("optim.lr=-1e-3", "optim.lr=-0.001: expected"),
        ("optim.lr=nan", "optim.lr=nan: expected"),
        ("optim.lr=inf", "optim.lr=inf: expected"),
        ("optim.warmup=-1", "optim.warmup=-1.0: expected"),
        ("optim.warmup=1e6", "optim.warmup=1000000.0: expected less than the run"),
        ("train.batch=100000", "train.batch=100000: expected at most the 626"),
        ("selection=best", "unknown selection 'best': did you mean"),
    ],
)
def test_a_run_that_cannot_be_done_is_refused(change, named):
    message = refused(CONFIG, f"--config.{change}")
    assert named in message and ("quickstart" in message or "selection" in change)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("configs/quickstart.py:method=loar", "'loar': did you mean lora?"),
        ("configs/quickstart.py:methd=lora", "did you mean method"),
        ("configs/quickstart.py:seed=99999999999", "expected a whole number from 0"),
        (f"configs/quickstart.py:seed={'9' * 5000}", "expected a whole number"),
        ("configs/quickstart.py:seed=-1", "expected a whole number"),
        ("configs/quickstrat.py", "did you mean configs/quickstart.py?"),
        ("configs", "configs: no such configuration file"),
        ("README.md", "README.md: expected a Python file"),
    ],
)
@pytest.mark.parametrize("main", [finetune, table])
def test_an_unknown_config_is_named(config, named, main):
    message = refused(f"--config={config}", main=main)
    assert named in message and message.count("lora") <= 1


CONFIG_DICT = "from ml_collections import ConfigDict\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def get_config(:\n", "line 1: SyntaxError: invalid syntax"),
        ("\n\nimport nothing_here", "line 3: ModuleNotFoundError: No module named"),
        ("x = 1", "expected a function get_config(arg)"),
        ("get_config = 3", "expected a function get_config(arg)"),
        ("def get_config(arg):\n  return {}", "get_config returned dict, expected"),
        ("def get_config(arg):\n  return 1 / 0", "line 2: ZeroDivisionError: divi"),
        ("def get_config():\n  return 1", "TypeError: get_config() takes 0 positional"),
        ("raise SystemExit(3)", "line 1: SystemExit: 3"),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
        (
            CONFIG_DICT + "def get_config(arg): return ConfigDict({'name': 'x'})",
            "the configuration lacks family, task",
        ),
    ],
)
def test_a_config_file_that_fails_is_one_line(tmp_path, text, named):
    file = tmp_path / "own.py"
    file.write_text(text)
    message = refused("--config", str(file))
    assert named in message and str(file) in message


def test_flags_are_told():
    assert "--confg: did you mean --config?" in refused(CONFIG, "--confg=x")
    assert "--resume and --force: give one" in refused(CONFIG, "--resume", "--force")
    assert "required: --config" in refused()
    assert "unexpected arguments ['more']" in refused(CONFIG, "more")
    with pytest.raises(SystemExit, match="--workdir: expected a folder"):
        finetune([CONFIG, "--workdir", ""])


def test_config_is_in_the_help(capsys):
    for main in (finetune, table):
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        told = capsys.readouterr().out
        assert caught.value.code == 0
        assert "--config FILE[:KEY=VALUE,...]" in told and "--config.optim.lr" in told


@pytest.mark.parametrize("key", ["task", "method", "seed"])
def test_what_other_settings_follow_from_is_chosen_with_the_file(key):
    message = refused(CONFIG, f"--config.{key}=1")
    assert f"--config FILE:{key}=" in message


def test_one_process_reads_several_command_lines():
    first = options(CONFIG, "--config.optim.lr=0.5").config
    other = options("--config", "configs/quickstart.py:method=hra,seed=2").config
    assert first.config().optim.lr == 0.5 and first.config().method == "lora"
    assert (other.config().method, other.config().seed) == ("hra", 2)
    assert first.config(method="ia3", seed=1).method == "ia3"
    assert first.variant() == "optim.lr=0.5" and other.variant() == ""


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--config.optim.lr", "1"], "optim.lr", 1.0),
        (["--config.measure=False"], "measure", False),
        (["--config.measure", "--config.name=x"], "measure", True),
        (["--config.grid=(1, 2)"], "grid", (1.0, 2.0)),
        (["--config.grid=1e-3,2e-3"], "grid", (1e-3, 2e-3)),
        (["--config.paths.cache", "a=b"], "paths.cache", "a=b"),
        (["--config.train.epochs=3"], "train.epochs", 3),
    ],
)
def test_a_setting_is_replaced_as_the_type_it_has(argv, key, value):
    found = options(CONFIG, *argv).config.config()
    for name in key.split("."):
        found = found[name]
    assert found == value and type(found) is type(value)


def test_a_number_is_not_cut_off():
    config = ConfigDict({"epochs": 3})
    with pytest.raises(ValueError, match="expected int"):
        override(config, "epochs", "2.5")


def test_an_expected_failure_is_one_line_and_a_bug_a_traceback():
    def raising(error):
        def main(argv=None):
            raise error("what and where")

        return cli.command(main)

    with pytest.raises(SystemExit, match="^FileExistsError: what and where$"):
        raising(FileExistsError)()
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError)()


def test_importing_needs_no_library_beyond_jax_numpy_and_flax():
    code = """
import sys
import jax, flax, flax.linen, flax.nnx
before = set(sys.modules)
import peftjax
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*new - {"peftjax"} - sys.stdlib_module_names)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"flax", "jax", "jaxlib", "numpy"}


def test_cores_are_counted_where_no_affinity_is_known(monkeypatch):
    from experiments import records

    monkeypatch.delattr(records.os, "sched_getaffinity", raising=False)
    assert records.cores() >= 1
