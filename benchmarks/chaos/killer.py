"""Kills processes of a running stack at random moments, and starts again those without a supervisor."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from benchmarks.control.databases import DatabaseServer
from benchmarks.processes import family, title
from cmcl.stack import LocalStack

# Kinds that Ray starts again, by what their command lines contain.
_OF_RAY = {
    "rank": ("RayTrainWorker",),
    "driver": ("-m workers.driver",),
    "replica": ("ServeReplica", "Embedder"),
    "encoder": ("ServeReplica", "Encoder-"),
    "Serve's controller": ("ServeController",),
    "HAProxy": ("haproxy",),
}
_OF_STACK = ("service", "Ray head", "PostgreSQL")
KINDS = (*_OF_RAY, *_OF_STACK)
# A head takes all of Ray with it, for a minute.
_WEIGHTS = {"Ray head": 0.2}


@dataclass(frozen=True)
class Kill:
    """One kill -9, at a number of seconds since the first client began."""

    at: float
    kind: str
    process: int


@dataclass
class Killer:
    """Kills a random kind of process after random pauses (`shortest`, `longest` seconds) until there were `most`."""

    stack: LocalStack
    database: DatabaseServer
    pause: tuple[float, float]
    most: int
    report: Callable[[str], None]
    seed: int = 0
    kills: list[Kill] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def start(self) -> None:
        """Start the thread; the first kill follows after a pause."""
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether all kills are done, or one could not be made good."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Kill no more. Raises the error of the thread."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        weights = [_WEIGHTS.get(kind, 1.0) for kind in KINDS]
        try:
            while len(self.kills) < self.most and not self._stop.wait(
                self._random.uniform(*self.pause)
            ):
                self._kill(self._random.choices(KINDS, weights)[0])
                if self.stack.processes["embeddings"].poll():
                    # Deploying the endpoint failed; a supervisor would try again.
                    self.report("the endpoint is deployed again")
                    self.stack.start_embeddings()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._error = error

    def _kill(self, kind: str) -> None:
        at = round(time.monotonic() - self._began, 1)
        process = self._kill_of_ray(kind) if kind in _OF_RAY else self._kill_of_stack(kind)
        if process is None:
            # It is being started after another kill.
            return
        self.kills.append(Kill(at, kind, process))
        self.report(f"{at:7.1f} s  kill -9 {kind} {process}")

    def _kill_of_ray(self, kind: str) -> int | None:
        if kind == "HAProxy":
            # It is detached from its parent.
            place = str(self.stack.proxy_folder)
            found = [
                each
                for each in psutil.process_iter(["name"])
                if each.info["name"] == "haproxy" and place in title(each)
            ]
        else:
            found = [
                each
                for each in family(self.stack.processes["ray"].pid)
                if all(word in title(each) for word in _OF_RAY[kind])
            ]
        if not found:
            return None
        process = int(self._random.choice(found).pid)
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            return None
        return process

    def _kill_of_stack(self, kind: str) -> int:
        stack = self.stack
        if kind == "PostgreSQL":
            return self.database.kill()
        process = stack.processes["service" if kind == "service" else "ray"].pid
        if kind == "service":
            stack.kill("service")
            stack.start_service()
            return process
        stack.kill("ray")
        stack.kill("embeddings")
        stack.start_ray()
        stack.wait_for_ray()
        stack.start_embeddings()
        return process
