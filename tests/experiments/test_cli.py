"""What a user meets on the command line, and what importing costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from experiments import cli

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "--config=configs/quickstart.py:method=lora"


def refused(*arguments):
    """Parse the flags as a script would; return what the user reads."""
    values, argv = flags.FlagValues(), ["script", *arguments]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(flags, "FLAGS", values)
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as caught:
            cli._parse(argv)
    message = caught.value.code
    assert isinstance(message, str) and len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.lrr=1", "did you mean --config.optim.lr?"),
        ("optimm.lr=1", "did you mean --config.optim?"),
        ("optim.lr.x=1", "unknown key --config.optim.lr.x"),
        ("zzz=1", "did you mean --config."),
        ("optim.lr=fast", "could not convert"),
    ],
)
def test_an_unknown_key_or_value_is_named_with_the_nearest(override, named):
    assert named in refused(CONFIG, f"--config.{override}")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("configs/quickstart.py:method=lorra", "did you mean lora"),
        ("configs/quickstart.py:methd=lora", "did you mean method"),
        ("configs/quickstrat.py", "quickstrat.py"),
    ],
)
def test_an_unknown_config_is_named(config, named):
    assert named in refused(f"--config={config}")


def test_an_unknown_flag_is_named():
    assert "confg" in refused(f"--confg={CONFIG}")


def test_an_expected_failure_is_one_line_and_another_a_traceback():
    def outcome(error):
        script = (
            "from experiments import cli\n"
            f"def main(): raise {error}('what and where')\n"
            "cli.define_config(); cli.run(main)"
        )
        command = [sys.executable, "-c", script, CONFIG]
        return subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ
        )

    expected, bug = outcome("FileExistsError"), outcome("ZeroDivisionError")
    message = expected.communicate()[1]
    assert "FileExistsError: what and where" in message and "Traceback" not in message
    assert expected.returncode == 1
    assert "Traceback" in bug.communicate()[1] and bug.returncode == 1


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


BASE = "import jax, flax, flax.linen, flax.nnx"


def test_importing_needs_no_library_beyond_jax_numpy_and_flax():
    code = f"""
import sys
{BASE}
before = set(sys.modules)
import peftjax
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*new - {{"peftjax"}} - sys.stdlib_module_names)
"""
    assert set(python(code).split()) <= {"flax", "jax", "jaxlib", "numpy"}


@pytest.mark.parametrize("key", ["task", "method", "seed"])
def test_what_other_settings_follow_from_is_chosen_with_the_file(key):
    message = refused(CONFIG, f"--config.{key}=1")
    assert f"--config FILE:{key}=" in message


def test_flags_are_known_by_both_names():
    assert cli._underscored("--dry-run") == "--dry_run"
    assert cli._underscored("--work-dir=a-b") == "--work_dir=a-b"
    for same in ("--config=configs/a-b.py", "a-b", "-n"):
        assert cli._underscored(same) == same
