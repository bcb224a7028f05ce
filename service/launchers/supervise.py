"""Runs one command and leaves its exit code in a file: `python -m service.launchers.supervise`.

The folder given as first argument gets `lock` (held while the command runs), `pid` (of this
process, which leads the group of the command), `log`, and `exit` at the end. Whoever restarts can
tell from these files what became of the command, without having been its parent.
"""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path


def detach() -> None:
    """Go on in a child with a session of its own, and let the parent end."""
    if os.fork():
        os._exit(0)
    os.setsid()


def supervise(folder: Path, command: list[str]) -> int:
    """Run the command unless another supervisor has it already; its exit code."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        if (folder / "pid").exists():
            return 0
        # A stop goes to the whole group. This process must outlive it to record the exit code;
        # unlike an ignored signal, a handler is not inherited by the command.
        stops: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
        _write(folder / "pid", str(os.getpid()))
        code = _run(folder, command, stops)
        _write(folder / "exit", str(code))
        return code


def _run(folder: Path, command: list[str], stops: list[int]) -> int:
    with (folder / "log").open("wb") as log:
        try:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        except OSError as error:
            log.write(f"{command[0]}: {error.strerror}\n".encode())
            return 127
        if stops:
            # It came before the command had begun, so the command has not heard of it.
            process.terminate()
        return process.wait()


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a reader never sees an empty file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


if __name__ == "__main__":
    detach()
    sys.exit(supervise(Path(sys.argv[1]), sys.argv[2:]))
