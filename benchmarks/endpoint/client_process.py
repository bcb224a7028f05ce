"""Clients in a separate process, so that they do not share an interpreter with the code under
test."""

from multiprocessing.connection import Connection

from benchmarks.endpoint.load import Answers, Check, Load, drive
from benchmarks.processes import Child

_STOP, _BEGUN = "stop", "begun"


class ClientProcess(Child):
    """One process for all loads, because starting a process takes longer than most of them."""

    def __init__(self) -> None:
        super().__init__(_run)

    def ask(self, load: Load, check: Check | None = None) -> Answers:
        """Run a load to its end and return all answers."""
        self.begin(load, check)
        return self.answers()

    def begin(self, load: Load, check: Check | None = None) -> None:
        """Start a load, and return when the first requests are sent."""
        self._pipe.send((load, check))
        assert self._pipe.recv() == _BEGUN

    def end(self) -> Answers:
        """Stop the running load early and return its answers."""
        self._pipe.send(_STOP)
        return self.answers()

    def answers(self) -> Answers:
        """Wait for the end of the load. Raises EOFError if the process failed."""
        found: Answers = self._pipe.recv()
        return found


def _run(pipe: Connection) -> None:
    try:
        while True:
            told = pipe.recv()
            if told == _STOP:
                continue  # The load had already ended.
            load, check = told
            pipe.send(_BEGUN)
            pipe.send(drive(load, check, lambda: not pipe.poll()))
    except EOFError:
        pass  # The parent has closed the pipe.
