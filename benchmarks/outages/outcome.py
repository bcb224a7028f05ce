"""Clients with retries, like those of applications (`cmcl.Client`), and figures of one fault from all requests.

These clients run in a separate process with one thread each. Every call is recorded with its duration and result.
"""

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from benchmarks.endpoint.load import Answers
from benchmarks.endpoint.messages import CLOSE, Array
from benchmarks.endpoint.stored import MODALITY, MODEL
from benchmarks.swaps import figures
from cmcl import Client, CmclError

_SPAWN = multiprocessing.get_context("spawn")

_OK = 200


@dataclass(frozen=True)
class Call:
    """One call. `at`: by time.time(). `ended`: "right", "wrong", or the error's name."""

    at: float
    seconds: float
    ended: str


class RetryingClients:
    """Retrying clients that run until `end`."""

    def __init__(self, address: str, rows_BF: Array, expected_BE: Array, clients: int) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (theirs, address, rows_BF, expected_BE, clients)
        self._process = _SPAWN.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.recv() == "begun"

    def end(self) -> list[Call]:
        """Stop the clients, and return all calls."""
        self._pipe.send("stop")
        found: list[Call] = self._pipe.recv()
        self._process.join()
        return found


def _run(pipe: Connection, address: str, rows_BF: Array, expected_BE: Array, clients: int) -> None:
    calls: list[Call] = []
    over = threading.Event()
    arguments = (address, rows_BF, expected_BE, over, calls)
    threads = [threading.Thread(target=_ask, args=arguments) for _ in range(clients)]
    for thread in threads:
        thread.start()
    pipe.send("begun")
    pipe.recv()
    over.set()
    for thread in threads:
        thread.join()
    pipe.send(calls)


def _ask(
    address: str, rows_BF: Array, expected_BE: Array, over: threading.Event, calls: list[Call]
) -> None:
    rows = rows_BF.tolist()
    with Client(address, address) as client:
        while not over.is_set():
            at, begin = time.time(), time.perf_counter()
            try:
                found_BE = np.array(client.embed(MODEL, MODALITY, rows).vectors, np.float32)
                far = float(np.abs(found_BE - expected_BE).max())
                ended = "right" if far < CLOSE else "wrong"
            except CmclError as error:
                ended = f"{type(error).__name__} {error.status or ''}".strip()
            calls.append(Call(at, time.perf_counter() - begin, ended))


@dataclass(frozen=True)
class Outcome:
    """Figures of one fault, in seconds. `failed`: requests of plain clients without status 200, by
    kind. `wrong`: responses to any client that do not match the version. `client_failed`: calls of
    `cmcl.Client` that raised. `silence`: longest time without a response to any plain client.
    `whole`: time from the fault until both replicas and HAProxy responded again.
    """

    case: str
    words: str
    settings: str
    answers: int
    failed: dict[str, int]
    wrong: int
    silence: float
    slowest: float
    client_calls: int
    client_failed: dict[str, int]
    client_slowest: float
    whole: float

    @property
    def lost(self) -> int:
        """Number of failed requests of plain clients."""
        return sum(self.failed.values())


@dataclass(frozen=True)
class Moment:
    """Times of a fault and of the recovery, by time.time()."""

    case: str
    words: str
    settings: str
    begin: float
    whole: float
    end: float


def outcome(moment: Moment, answers: Answers, calls: Sequence[Call]) -> Outcome:
    """Return figures of requests that were in progress at the fault or sent after it."""
    ended = answers["sent"] + answers["seconds"]
    seen = answers[(ended > moment.begin) & (answers["sent"] < moment.end)]
    mine = [c for c in calls if c.at + c.seconds > moment.begin and c.at < moment.end]
    ended_by = Counter(call.ended for call in mine)
    wrong = figures.wrong(seen) + ended_by.pop("wrong", 0)
    ended_by.pop("right", None)
    return Outcome(
        case=moment.case,
        words=moment.words,
        settings=moment.settings,
        answers=len(seen),
        failed=figures.failures(seen),
        wrong=wrong,
        silence=_silence(seen, moment),
        slowest=float(seen["seconds"].max(initial=0)),
        client_calls=len(mine),
        client_failed=dict(ended_by),
        client_slowest=max((call.seconds for call in mine), default=0.0),
        whole=moment.whole - moment.begin,
    )


def _silence(seen: Answers, moment: Moment) -> float:
    good = seen[seen["status"] == _OK]
    times = np.sort(good["sent"] + good["seconds"])
    times = np.concatenate([[moment.begin], times[times > moment.begin], [moment.end]])
    return float(np.diff(times).max())
