"""SteadyLoad work of the other owner during attacks, in a separate process.

Requests start at fixed times whether or not earlier ones were answered, so a stalled server delays
all requests of that time, not only the first.
"""

import asyncio
import base64
import json
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import httpx

from benchmarks.processes import Child

TIMEOUT_SECONDS = 10.0
PROBES = ("healthz service", "healthz endpoint")
_TAKE = "take"
_PART = b"\0" * 65_536
_UPLOAD = {"filename": "steady.bin", "bytes": len(_PART)}
_KEPT = 8


class Record(NamedTuple):
    """One request. `begin`: monotonic time, which all processes of a machine share. `error`: the
    exception without a response (status 0), or a note that it was late."""

    kind: str
    begin: float
    seconds: float
    status: int
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether it failed: all requests are valid, so only 2xx in time is a success."""
        is_success = httpx.codes.OK <= self.status < httpx.codes.MULTIPLE_CHOICES
        return bool(self.error) or not is_success


@dataclass(frozen=True)
class Bystander:
    """The other owner, its servers and its data. `feature`: a query of `modality`. `collection`:
    its collection.

        `rates`: requests per second by kind; a `write` is three requests.
    """

    service: str
    endpoint: str
    key: str
    model: str
    modality: str
    feature: Sequence[float]
    collection: str
    rates: Mapping[str, float]


RATES: Mapping[str, float] = {
    "embed": 10,
    "search": 2,
    "read": 5,
    "write": 1,
    "add": 0.5,
    "stream": 0.5,
    PROBES[0]: 4,
    PROBES[1]: 4,
}


class SteadyLoad(Child):
    """The working process; `take` returns the requests recorded since the last call."""

    def __init__(self, bystander: Bystander) -> None:
        super().__init__(_run, bystander)

    def take(self) -> list[Record]:
        """Return all requests since the last call, after those in progress have ended. Raises
        EOFError if the process ended."""
        self._pipe.send(_TAKE)
        found: list[Record] = self._pipe.recv()
        return found


class _Workload:
    """Requests of the owner, each recorded."""

    def __init__(
        self,
        bystander: Bystander,
        service: httpx.AsyncClient,
        endpoint: httpx.AsyncClient,
        prober: httpx.AsyncClient,
    ) -> None:
        self._who = bystander
        self._service = service
        self._endpoint = endpoint
        self._prober = prober
        self.records: list[Record] = []
        self.under_way: set[asyncio.Task[None]] = set()
        # An unexpected error, which the next `take` raises.
        self.errors: list[BaseException] = []
        self._reads = 0
        feature = base64.b64encode(struct.pack(f"<{len(bystander.feature)}f", *bystander.feature))
        item = {"modality": bystander.modality, "feature": feature.decode()}
        self._embed = _json({"model": bystander.model, "input": [item]})
        self._search = _json({"query": item, "top_k": 5})
        self._add = _json({"items": [{**item, "id": "steady", "payload": {"colour": "red"}}]})
        self._acts: dict[str, Callable[[], Awaitable[object]]] = {
            "embed": lambda: self._post("embed", "/v1/embeddings", self._embed),
            "search": lambda: self._post("search", self._items("search"), self._search),
            "add": lambda: self._post("add", self._items("items"), self._add),
            "read": self._read,
            "write": self._write,
            "stream": self._stream,
            PROBES[0]: lambda: self._probe(PROBES[0], self._who.service),
            PROBES[1]: lambda: self._probe(PROBES[1], self._who.endpoint),
        }

    async def steadily(self, kind: str, per_second: float) -> None:
        """Start requests of this kind at fixed times, forever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            task = asyncio.ensure_future(self._one(kind))
            self.under_way.add(task)
            task.add_done_callback(self._ended)
            due += 1 / per_second
            await asyncio.sleep(due - loop.time())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.under_way.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.errors.append(error)

    async def _one(self, kind: str) -> None:
        await self._acts[kind]()

    async def recorded(
        self, kind: str, request: Awaitable[httpx.Response]
    ) -> httpx.Response | None:
        """Await a request and record it. Return None if it failed."""
        begin, status, error, answer = time.monotonic(), 0, "", None
        try:
            answer = await request
            status = answer.status_code
        except httpx.TimeoutException:
            error = "timeout"
        except (httpx.HTTPError, OSError) as raised:
            error = type(raised).__name__
        seconds = time.monotonic() - begin
        # httpx limits each step of a request, not the total.
        error = "timeout" if seconds > TIMEOUT_SECONDS else error
        record = Record(kind, begin, seconds, status, error)
        self.records.append(record)
        return None if record.failed else answer

    async def _post(self, kind: str, path: str, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        await self.recorded(kind, self._endpoint.post(path, content=body, headers=headers))

    def _items(self, what: str) -> str:
        return f"/v1/collections/{self._who.collection}/{what}"

    async def _read(self) -> None:
        """Read jobs and models alternately."""
        self._reads += 1
        path = "/v1/jobs" if self._reads % 2 else "/v1/models"
        await self.recorded("read", self._service.get(path))

    async def _write(self) -> None:
        """Create an upload, send its file, and abort it."""
        answer = await self.recorded("write", self._service.post("/v1/uploads", json=_UPLOAD))
        if answer is None:
            return
        upload = f"/v1/uploads/{answer.json()['id']}"
        headers = {"content-type": "application/octet-stream"}
        part = self._service.put(f"{upload}/file", content=_PART, headers=headers)
        await self.recorded("part", part)
        await self.recorded("write", self._service.delete(upload))

    async def _stream(self) -> None:
        """Open the event stream and read the response head."""

        async def opened() -> httpx.Response:
            headers = {"accept": "text/event-stream"}
            async with self._service.stream("GET", "/v1/events", headers=headers) as answer:
                return answer

        await self.recorded("stream", opened())

    async def _probe(self, kind: str, url: str) -> None:
        """Probe on a new connection without a key, like a kubelet."""

        await self.recorded(kind, self._prober.get(f"{url}/healthz"))


def _client(
    kept: int, headers: Mapping[str, str] | None = None, base_url: str = ""
) -> httpx.AsyncClient:
    """A client that opens further connections instead of queueing requests, so that only the server
    is measured."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=kept)
    return httpx.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=TIMEOUT_SECONDS,
        limits=limits,
        trust_env=False,
    )


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _run(bystander: Bystander, pipe: Connection) -> None:
    try:
        asyncio.run(_work(bystander, pipe))
    except EOFError:
        pass  # The parent has closed its end, which ends this process.


async def _work(bystander: Bystander, pipe: Connection) -> None:
    async with AsyncExitStack() as stack:
        key = {"authorization": f"Bearer {bystander.key}"}
        service, endpoint = [
            await stack.enter_async_context(_client(_KEPT, headers=key, base_url=url))
            for url in (bystander.service, bystander.endpoint)
        ]
        prober = await stack.enter_async_context(_client(0))
        work = _Workload(bystander, service, endpoint, prober)
        steady = [asyncio.create_task(work.steadily(*each)) for each in bystander.rates.items()]
        stack.callback(lambda: [task.cancel() for task in steady])
        while True:
            await _asked(pipe, steady)
            if work.under_way:
                await asyncio.wait(set(work.under_way))
            if work.errors:
                raise work.errors[0]
            pipe.send(work.records)
            work.records = []


async def _asked(pipe: Connection, steady: Sequence[asyncio.Task[Any]]) -> None:
    """Wait for the parent. Raises EOFError at the end, or an earlier error of the work."""
    asked = asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    await asyncio.wait([asked, *steady], return_when=asyncio.FIRST_COMPLETED)
    for task in steady:
        if task.done():
            task.result()
    await asked
