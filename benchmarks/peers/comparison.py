"""Compare servers: the same requests to each of them, alternately, cell by cell.

Shapes: B rows, F width of the feature, E width of the embeddings, R different requests.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.endpoint.load import WRONG, Answers, Check, ClientProcess, Load, drive
from benchmarks.endpoint.messages import (
    Array,
    Expected,
    Form,
    feature_request,
    features,
    request,
    text_request,
    vectors,
)
from benchmarks.endpoint.stored import MODALITY, MODEL, heads_of
from benchmarks.peers.servers import INFINITY_MODEL

_OK = 200
# A megabyte of numbers is five of JSON; a few distinct requests exceed any cache.
_NUMBERS = 1 << 19
_MOST_REQUESTS = 8
_REPEATS = 9
_ALONE_SECONDS = 60.0
# Warm-up of the same server before a round, as a share of the round.
_WARM_UP = 0.25


@dataclass(frozen=True)
class Size:
    """One cell: rows per request, format, and number of clients."""

    form: Form
    rows: int
    clients: int


@dataclass(frozen=True)
class Schedule:
    """Seconds per server in one round of a cell, and number of rounds."""

    seconds: float
    rounds: int


@dataclass(frozen=True)
class Cell:
    """Results of one server in one cell; times in milliseconds, of responses with status 200."""

    server: str
    form: Form
    rows: int
    clients: int
    answers: int
    p50: float
    p95: float
    requests_per_second: float
    rows_per_second: float
    failed: int
    wrong: int

    def document(self) -> dict[str, Any]:
        """Return the JSON representation."""
        return asdict(self)


@dataclass(frozen=True)
class Server:
    """A server, with its requests of a size and the check of responses."""

    name: str
    forms: tuple[Form, ...]
    prepare: Callable[[Size], tuple[str, list[bytes], Check]]


def ours(address: str, width: int) -> Server:
    """The endpoint behind HAProxy, with all its features."""

    def prepare(size: Size) -> tuple[str, list[bytes], Check]:
        rows_RBF = _features(size, width)
        requests = [
            feature_request(address, size.form, rows_BF, model=MODEL, modality=MODALITY)
            for rows_BF in rows_RBF
        ]
        return address, requests, Expected(size.form, {1: _embeddings(rows_RBF, width)})

    return Server("ours", ("json", "base64", "binary"), prepare)


def bare(address: str, width: int) -> Server:
    """`benchmarks.peers.bare`: the same requests, except for the path of raw rows."""

    def prepare(size: Size) -> tuple[str, list[bytes], Check]:
        if size.form != "binary":
            return ours(address, width).prepare(size)
        rows_RBF = _features(size, width)
        path = f"/v1/raw?modality={MODALITY}&width={width}"
        requests = [
            request(address, path, rows_BF.tobytes(), "application/octet-stream")
            for rows_BF in rows_RBF
        ]
        return address, requests, Expected(size.form, {1: _embeddings(rows_RBF, width)})

    return Server("bare", ("json", "base64", "binary"), prepare)


def infinity(address: str, width: int, words: int) -> Server:
    """Infinity with texts of one word; it has no binary format. Expected results are its responses
    to single words."""
    alone_WE = _asked_alone(address, words, width)

    def prepare(size: Size) -> tuple[str, list[bytes], Check]:
        numbers_RB = [
            [(127 * number + row) % words for row in range(size.rows)]
            for number in range(_requests(size, width))
        ]
        requests = [
            text_request(address, size.form, [f"w{each}" for each in numbers_B], INFINITY_MODEL)
            for numbers_B in numbers_RB
        ]
        # Its responses name no version, which is read as 0.
        return address, requests, Expected(size.form, {0: alone_WE[numbers_RB]})

    return Server("infinity", ("json", "base64"), prepare)


def compare(
    clients: ClientProcess, servers: Sequence[Server], sizes: Sequence[Size], schedule: Schedule
) -> Iterator[Cell]:
    """Yield the cells. Each round of a cell alternates between the servers."""
    seconds = schedule.seconds
    for size in sizes:
        prepared = {each.name: each.prepare(size) for each in servers if size.form in each.forms}
        found: dict[str, list[Answers]] = {name: [] for name in prepared}
        for _ in range(schedule.rounds):
            for name, (address, requests, check) in prepared.items():
                clients.ask(Load(address, requests, size.clients, seconds * _WARM_UP))
                load = Load(address, requests, size.clients, seconds, least=2 * size.clients)
                found[name].append(clients.ask(load, check))
        for name, answers in found.items():
            yield _cell(name, size, answers)


def products_per_second(width: int, batch: int) -> float:
    """Return rows per second of the same heads in a tight loop with one thread: the upper bound."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    heads = heads_of(1, width)
    rows_BF = torch.from_numpy(features(1, batch, width)[0])
    with torch.inference_mode():
        heads.embed(MODALITY, rows_BF)
        seconds = []
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            heads.embed(MODALITY, rows_BF)
            seconds.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return batch / median(seconds)


def _cell(server: str, size: Size, rounds: Sequence[Answers]) -> Cell:
    answers = np.concatenate(rounds)
    good = answers[answers["status"] == _OK]
    times = 1000 * good["seconds"] if len(good) else np.array([np.nan])
    took = sum(map(_seconds, rounds))
    return Cell(
        server=server,
        form=size.form,
        rows=size.rows,
        clients=size.clients,
        answers=len(good),
        p50=float(np.median(times)),
        p95=float(np.percentile(times, 95)),
        requests_per_second=len(good) / took,
        rows_per_second=len(good) * size.rows / took,
        failed=len(answers) - len(good),
        wrong=int((answers["checked"] == WRONG).sum()),
    )


def _seconds(answers: Answers) -> float:
    """Return the time from the first request to the last response."""
    if not len(answers):
        return float("nan")
    return float((answers["sent"] + answers["seconds"]).max() - answers["sent"].min())


def _requests(size: Size, width: int) -> int:
    return max(2, min(_MOST_REQUESTS, _NUMBERS // (size.rows * width)))


def _features(size: Size, width: int) -> Array:
    return features(_requests(size, width), size.rows, width)


@torch.inference_mode()
def _embeddings(rows_RBF: Array, width: int) -> Array:
    heads = heads_of(1, width)
    found = [heads.embed(MODALITY, torch.from_numpy(rows_BF)).numpy() for rows_BF in rows_RBF]
    return np.stack(found)


def _asked_alone(address: str, words: int, width: int) -> Array:
    """Embed words one by one (W × E), to detect mixed-up rows in batches."""
    alone_WE = np.zeros((words, width), np.float32)
    missing = set(range(words))

    def keep(body: memoryview, _version: int, number: int) -> bool:
        alone_WE[number] = vectors("base64", body, width)[0]
        missing.discard(number)
        return True

    requests = [text_request(address, "base64", [f"w{n}"], INFINITY_MODEL) for n in range(words)]
    load = Load(address, requests, 1, _ALONE_SECONDS, check_each=True)
    drive(load, keep, should_continue=lambda: bool(missing))
    if missing:
        raise RuntimeError(f"{address} left {len(missing)} of {words} words without a response")
    return alone_WE
