"""Clients with retries, like those of applications: `cmcl.Client`.

They run in a separate process with one thread each. Every call is recorded with its duration and
result.
"""

import multiprocessing
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from benchmarks.endpoint.bodies import CLOSE, Array
from benchmarks.endpoint.stored import MODALITY, MODEL
from cmcl import Client, CmclError

_SPAWN = multiprocessing.get_context("spawn")


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
