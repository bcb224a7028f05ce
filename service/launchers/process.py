"""Attempts as processes of this machine, for trying things out without a Ray cluster.

Each command has a supervisor that detaches itself, so it outlives the control plane, and a restarted
control plane finds it again through the files in its folder.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from service.launchers.port import LauncherUnavailable, LaunchState, LaunchStatus, Submission

_START_SECONDS = 20.0
_GRACE_SECONDS = 10.0
_MESSAGE_BYTES = 2000


class ProcessLauncher:
    """Launcher that keeps one folder per submission under `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def submit(self, submission: Submission) -> None:
        """See the port. This machine has no queue and no labels: only the command counts."""
        folder = self._root / submission.id
        if (folder / "pid").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        supervisor = [sys.executable, "-m", "service.launchers.supervise", str(folder)]
        # It detaches itself and answers at once: whoever restarts is nobody's parent either.
        subprocess.run([*supervisor, *submission.command], stdin=subprocess.DEVNULL, check=True)
        self._await_start(folder)

    def status(self, submission_id: str) -> LaunchStatus:
        """See the port."""
        folder = self._root / submission_id
        if not (folder / "pid").exists():
            return LaunchStatus(LaunchState.UNKNOWN, "no such process was started here")
        if _is_running(folder):
            return LaunchStatus(LaunchState.RUNNING)
        return _ended(folder)

    def stop(self, submission_id: str) -> None:
        """See the port. Terminates first; asked again after some seconds, kills."""
        folder = self._root / submission_id
        if not (folder / "pid").exists() or not _is_running(folder):
            return
        stopping = folder / "stopping"
        if not stopping.exists():
            stopping.touch()
        patience_is_over = time.time() - stopping.stat().st_mtime > _GRACE_SECONDS
        _signal(folder, signal.SIGKILL if patience_is_over else signal.SIGTERM)

    def forget(self, submission_id: str) -> None:
        """See the port."""
        folder = self._root / submission_id
        if (folder / "pid").exists() and not _is_running(folder):
            shutil.rmtree(folder)

    def _await_start(self, folder: Path) -> None:
        """Until the supervisor has left its number: before that, nobody could find it again."""
        deadline = time.monotonic() + _START_SECONDS
        while not (folder / "pid").exists():
            if time.monotonic() > deadline:
                raise LauncherUnavailable(f"no process appeared within {_START_SECONDS:.0f} s")
            time.sleep(0.01)


def _is_running(folder: Path) -> bool:
    """Whether the supervisor holds its lock. A process number alone could be somebody else's."""
    with (folder / "lock").open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _ended(folder: Path) -> LaunchStatus:
    if (folder / "stopping").exists():
        return LaunchStatus(LaunchState.STOPPED, "stopped on request")
    if not (folder / "exit").exists():
        return LaunchStatus(LaunchState.FAILED, "the process vanished without an exit code")
    code = int((folder / "exit").read_text())
    if code == 0:
        return LaunchStatus(LaunchState.SUCCEEDED)
    tail = (folder / "log").read_bytes()[-_MESSAGE_BYTES:].decode(errors="replace").strip()
    return LaunchStatus(LaunchState.FAILED, f"exit code {code}: {tail}")


def _signal(folder: Path, number: signal.Signals) -> None:
    try:
        os.killpg(int((folder / "pid").read_text()), number)
    except ProcessLookupError:
        # It ended between the look at its lock and the signal, which is what was asked for.
        return
