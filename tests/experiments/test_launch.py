"""The launch scripts hand their flags on, word for word."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "experiments" / "launch"
FLAGS = ["--config", "configs/quickstart.py:method=hra", "--workdir", "gs://a b/c"]


def launched(tmp_path, script, *arguments, client, status=0, **environment):
    """Run a script against a client that records its words; return the result."""
    recorder = "#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done\n"
    for name in client:
        stub = tmp_path / name
        stub.write_text(f"{recorder}exit {status}\n")
        stub.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [LAUNCH / script, *arguments],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


def said(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_tpu_vm_runs_the_command_on_all_hosts(tmp_path):
    words = said(launched(tmp_path, "tpu_vm.sh", "pod", "z", *FLAGS, client=["gcloud"]))
    assert words[:6] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=z"]
    assert words[6] == "--worker=all"
    command = shlex.split(words[7].removeprefix("--command="))
    assert command[:3] == ["cd", "peftjax", "&&"]
    expected = ["env", "python3", "-u", "-m", "experiments.table", *FLAGS]
    assert command[3:] == expected


def test_a_tpu_vm_by_device_makes_each_host_a_slice(tmp_path):
    flags = [*FLAGS, "--per-device"]
    words = said(launched(tmp_path, "tpu_vm.sh", "pod", "z", *flags, client=["gcloud"]))
    command = shlex.split(words[7])
    assert "TPU_PROCESS_BOUNDS=1,1,1" in command and command[-5:] == flags


def test_xpk_restarts_what_can_be_resumed(tmp_path):
    done = launched(
        tmp_path, "xpk.sh", "c", "n", "v5litepod-16", *FLAGS, client=["xpk"], IMAGE="i"
    )
    words = said(done)
    assert words[:4] == ["workload", "create", "--cluster=c", "--workload=n"]
    assert {"--tpu-type=v5litepod-16", "--docker-image=i"} < set(words)
    assert "--restart-on-exit-codes=75" in words
    command = shlex.split(words[-1].removeprefix("--command="))
    assert command == ["python3", "-u", "-m", "experiments.table", *FLAGS]


@pytest.mark.parametrize(("status", "again"), [(0, False), (75, True), (1, False)])
def test_slurm_queues_again_what_can_be_resumed(tmp_path, status, again):
    done = launched(
        tmp_path,
        "slurm.sh",
        *FLAGS,
        client=["srun", "scontrol"],
        status=status,
        SLURM_JOB_ID="7",
        PYTHON=sys.executable,
        MODULE="experiments.finetune",
    )
    words = done.stdout.splitlines()
    own = [sys.executable, "-u", "-m", "experiments.finetune", *FLAGS]
    assert words[1 : len(own) + 1] == own
    assert words[len(own) + 1 :] == (["requeue", "7"] if again else [])
    assert done.returncode == status


@pytest.mark.parametrize(("script", "given"), [("tpu_vm.sh", "pod"), ("xpk.sh", "c")])
def test_what_is_missing_is_told(tmp_path, script, given):
    done = launched(tmp_path, script, given, client=["gcloud", "xpk"])
    assert done.returncode == 2 and done.stderr.startswith("usage:")


def test_shellcheck_has_nothing_to_say():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert scripts
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
