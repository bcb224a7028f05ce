"""Constant load of embedding queries during training and swaps."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import count

# Tolerance for rounding, which depends on the batch size.
_TOLERANCE = 1e-5


@dataclass
class QueryReport:
    """Observations of the querying client."""

    sent: int = 0
    failures: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    # By version, as the endpoint names it: `model@version`.
    first_seen: dict[str, float] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        """Return the latency in seconds at the quantile `share`."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


class QueryLoad:
    """Threads that send `rate` queries per second in total, and check each response.

    A query fails if its status is not 200, if the response has an unexpected form, or if one version
    answers the same query in two ways.
    """

    def __init__(
        self,
        host: str,
        port: int,
        model: str,
        probes: dict[str, list[list[float]]],
        rate: float,
        threads: int = 4,
    ) -> None:
        self._address, self._interval = (host, port), threads / rate
        self._bodies: list[bytes] = []
        self.add(model, probes)
        self.report = QueryReport()
        # First response of each version to each query, for comparison with later ones.
        self.answers: dict[tuple[str, int], list[float]] = {}
        self._numbers = count()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(threads)]

    def add(self, model: str, probes: dict[str, list[list[float]]]) -> None:
        """Send features of modalities that a model has learned since, too."""
        self._bodies += [
            json.dumps({"model": model, "modality": modality, "input": row}).encode()
            for modality, rows in probes.items()
            for row in rows
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> QueryReport:
        """Finish running queries and return the report."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        return self.report

    def wait_for(self, version: str, timeout: float) -> float | None:
        """Wait for the first response of `version` (`model@version`). Return its time (time.monotonic), or None."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if version in self.report.first_seen:
                return self.report.first_seen[version]
            time.sleep(0.02)
        return None

    def _ask_on(self) -> None:
        connection = HTTPConnection(*self._address, timeout=30)
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            # Late queries are not made up for by a burst.
            due = max(due + self._interval, time.monotonic())
            self._ask(connection, next(self._numbers) % len(self._bodies))
        connection.close()

    def _ask(self, connection: HTTPConnection, query: int) -> None:
        began = time.monotonic()
        try:
            connection.request(
                "POST",
                "/v1/embeddings",
                self._bodies[query],
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (HTTPException, OSError) as error:
            connection.close()
            self._failed(f"no answer: {error!r}")
            return
        self._check(query, status, body, began)

    def _check(self, query: int, status: int, body: bytes, began: float) -> None:
        if status != 200:
            self._failed(f"HTTP {status}: {body[:200].decode(errors='replace')}")
            return
        try:
            answer = json.loads(body)
            version = str(answer["model"])
            int(version.rpartition("@")[2])
            vector = [float(value) for value in answer["data"][0]["embedding"]]
        except (ValueError, LookupError, TypeError, AttributeError):
            # Count it as a failure; an exception would end the thread unnoticed.
            self._failed(f"unexpected form: {body[:200].decode(errors='replace')}")
            return
        now = time.monotonic()
        with self._lock:
            self.report.sent += 1
            self.report.latencies.append(now - began)
            self.report.first_seen.setdefault(version, now)
            known = self.answers.setdefault((version, query), vector)
        if not _agree(known, vector):
            with self._lock:
                self.report.failures.append(f"{version} answered query {query} in two ways")

    def _failed(self, why: str) -> None:
        with self._lock:
            self.report.sent += 1
            self.report.failures.append(why)


def _agree(known: list[float], vector: list[float]) -> bool:
    """Whether two vectors are equal within rounding. A NaN is never equal."""
    if not vector or len(known) != len(vector):
        return False
    return all(abs(a - b) <= _TOLERANCE for a, b in zip(known, vector, strict=True))
