"""Child processes, and inspection of processes that may end at any time."""

import multiprocessing
from collections.abc import Callable
from typing import Any, Self

import psutil

_SPAWN = multiprocessing.get_context("spawn")
_STOP_SECONDS = 10.0


class Child:
    """A process that runs `run(*arguments, pipe)` and ends when this end of the pipe is closed.

    As a context manager: on exit the pipe is closed, and a process that does not end is killed.
    """

    def __init__(self, run: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=run, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(_STOP_SECONDS)
        self._process.kill()


def family(number: int) -> list[psutil.Process]:
    """Return all descendants of a process; none if it has ended."""
    try:
        found: list[psutil.Process] = psutil.Process(number).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def title(process: psutil.Process) -> str:
    """Return the command line, as set by Ray; empty if the process has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
