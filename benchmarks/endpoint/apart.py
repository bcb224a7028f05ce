"""The clients in a process of their own, so that they and what is measured do not share an interpreter."""

import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from benchmarks.endpoint.load import Answers, Check, Load, drive

_SPAWN = multiprocessing.get_context("spawn")
_STOP_SECONDS = 10.0
_STOP, _BEGUN = "stop", "begun"


class Clients:
    """One process for all loads: starting one takes longer than many of them last."""

    def __init__(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process: BaseProcess = _SPAWN.Process(target=_run, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.join(_STOP_SECONDS)
        self._process.kill()

    def ask(self, load: Load, check: Check | None = None) -> Answers:
        """All answers of a load that nobody interrupts."""
        self.begin(load, check)
        return self.answers()

    def begin(self, load: Load, check: Check | None = None) -> None:
        """It returns as the first requests go out."""
        self._pipe.send((load, check))
        assert self._pipe.recv() == _BEGUN

    def end(self) -> Answers:
        """End what has begun, before its time."""
        self._pipe.send(_STOP)
        return self.answers()

    def answers(self) -> Answers:
        """Wait for the end. Raises EOFError where the process failed."""
        found: Answers = self._pipe.recv()
        return found


def _run(pipe: Connection) -> None:
    try:
        while True:
            told = pipe.recv()
            if told == _STOP:
                continue  # It had ended by itself.
            load, check = told
            pipe.send(_BEGUN)
            pipe.send(drive(load, check, lambda: not pipe.poll()))
    except EOFError:
        pass  # Nobody wants to know anything more.
