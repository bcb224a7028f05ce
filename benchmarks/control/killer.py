"""Kill processes of a running local system at random moments, and restart those without a
supervisor."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from cmcl.stack import LocalStack

# Processes are found by their command line; the main process of each part is a child of the stack.
_RANK = "RayTrainWorker"
_DRIVER = "-m workers.driver --store"


@dataclass(frozen=True)
class Kill:
    """One kill -9: time (seconds since the start), process, and states of the jobs."""

    at: float
    kind: str
    process: int
    jobs: str


@dataclass
class Killer:
    """Kills each kind of process in turn, at random moments from `seed`.

    `pause` is the shortest and the longest time between two kills in seconds. `look` returns a
    short description of the jobs' states for the log.
    """

    stack: LocalStack
    kinds: tuple[str, ...]
    pause: tuple[float, float]
    look: Callable[[], str]
    seed: int = 0
    kills: list[Kill] = field(default_factory=list)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 (moments, no secrets)
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def start(self) -> None:
        """Start the thread; the first kill follows after a pause."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and raise the error of the thread, if any."""
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            turn = 0
            while not self._stop.wait(self._random.uniform(*self.pause)):
                turn += self._kill(self.kinds[turn % len(self.kinds)])
        except BaseException as error:  # noqa: BLE001
            # Raised by stop(): a thread cannot raise in its caller.
            self.error = error

    def _kill(self, kind: str) -> bool:
        """Return whether such a process existed. Ranks may be restarting."""
        jobs = self.look()
        process = _KINDS[kind](self.stack)
        if process is None:
            return False
        kill = Kill(round(time.monotonic() - self._began, 1), kind, process, jobs)
        self.kills.append(kill)
        print(f"{kill.at:7.1f} s  kill -9 {kind} {process}  ({jobs})", flush=True)
        return True


def _kill_service(stack: LocalStack) -> int | None:
    process = stack.processes["service"].pid
    stack.kill("service")
    stack.start_service()
    return process


def _kill_head(stack: LocalStack) -> int | None:
    """Kill all of Ray on this machine, including the endpoint, and restart both as a supervisor
    would."""
    process = stack.processes["ray"].pid
    stack.kill("ray")
    stack.kill("embeddings")
    stack.start_ray()
    stack.wait_for_ray()
    stack.start_embeddings()
    return process


def _kill_rank(stack: LocalStack) -> int | None:
    return _kill_one(stack, _RANK)


def _kill_driver(stack: LocalStack) -> int | None:
    return _kill_one(stack, _DRIVER)


def _kill_one(stack: LocalStack, words: str) -> int | None:
    for child in psutil.Process(stack.processes["ray"].pid).children(recursive=True):
        try:
            if words in " ".join(child.cmdline()):
                process = int(child.pid)
                os.kill(process, signal.SIGKILL)
                return process
        except (psutil.NoSuchProcess, psutil.ZombieProcess, ProcessLookupError):
            continue  # It has ended in the meantime.
    return None


_KINDS: dict[str, Callable[[LocalStack], int | None]] = {
    "service": _kill_service,
    "Ray head": _kill_head,
    "rank": _kill_rank,
    "driver": _kill_driver,
}
KINDS = tuple(_KINDS)
