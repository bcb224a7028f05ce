"""Processes that outlive the control plane that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from service.launchers.port import LaunchState, LaunchStatus, Submission
from service.launchers.process import ProcessLauncher


def _ended(launcher: ProcessLauncher, name: str) -> LaunchStatus:
    deadline = time.monotonic() + 60
    while not (status := launcher.status(name)).has_ended:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status


def _start_in_another_process(folder: Path, command: list[str]) -> None:
    """A control plane that starts something and is gone."""
    code = (
        "import sys; from pathlib import Path;"
        "from service.launchers.port import Submission;"
        "from service.launchers.process import ProcessLauncher;"
        "ProcessLauncher(Path(sys.argv[1])).submit(Submission('job-1-a1', sys.argv[2:]));"
        "import os; os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), *command], check=True, timeout=60)


def test_a_successor_adopts_what_runs(tmp_path: Path) -> None:
    _start_in_another_process(tmp_path, ["sleep", "60"])
    successor = ProcessLauncher(tmp_path)
    assert successor.status("job-1-a1").state == LaunchState.RUNNING
    successor.stop("job-1-a1")
    assert _ended(successor, "job-1-a1").state == LaunchState.STOPPED


def test_a_successor_learns_how_it_ended(tmp_path: Path) -> None:
    _start_in_another_process(tmp_path, ["sh", "-c", "echo out of luck; exit 4"])
    status = _ended(ProcessLauncher(tmp_path), "job-1-a1")
    assert status == LaunchStatus(LaunchState.FAILED, "exit code 4: out of luck")


def test_a_killed_process_has_failed(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path)
    launcher.submit(Submission("job-1-a1", ["sleep", "60"]))
    os.killpg(int((tmp_path / "job-1-a1" / "pid").read_text()), signal.SIGKILL)
    status = _ended(launcher, "job-1-a1")
    assert status == LaunchStatus(LaunchState.FAILED, "the process vanished without an exit code")


def test_who_ignores_the_request_is_killed(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path)
    launcher.submit(Submission("job-1-a1", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]))
    launcher.stop("job-1-a1")
    stopping = tmp_path / "job-1-a1" / "stopping"
    long_ago = time.time() - 60
    os.utime(stopping, (long_ago, long_ago))
    launcher.stop("job-1-a1")
    assert _ended(launcher, "job-1-a1").state == LaunchState.STOPPED


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    launcher = ProcessLauncher(tmp_path)
    launcher.submit(Submission("job-1-a1", ["no-such-program"]))
    assert "no-such-program: No such file" in _ended(launcher, "job-1-a1").message
