"""The clients in a process of their own, so that they and what is measured do not share an interpreter."""

from multiprocessing.connection import Connection

from benchmarks.endpoint.load import Answers, Check, Load, drive
from benchmarks.processes import Child

_STOP, _BEGUN = "stop", "begun"


class Clients(Child):
    """One process for all loads: starting one takes longer than many of them last."""

    def __init__(self) -> None:
        super().__init__(_run)

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
