"""Store, launcher and database of the simulation: their calls take virtual time, are counted, and may fail."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, event

from benchmarks.simulation.memory import MemoryStore
from benchmarks.simulation.virtual_time import VirtualLock, VirtualTime
from cmcl.contract.errors import StorageUnavailable
from service.database.engine import Database, WriterLock
from service.database.rows import Event
from service.launchers.port import (
    ClusterResources,
    Launcher,
    LauncherUnavailable,
    LaunchStatus,
    StatusCache,
    Submission,
)

# Keys of one answer of S3 to a request for a listing.
_PAGE = 1000


@dataclass(frozen=True)
class Costs:
    """What calls take, in seconds, and how often they fail.

    Of `slow_share` of the calls of store and launcher, the time is ten times as long. In `outage` (from, to) every call
    of the store fails after that time. `processor`: of a replica, whose threads share one core (the interpreter's lock).
    The processor's times were measured in this simulation; `measured_cores` of a result has the real ones to compare.
    """

    call: float = 0.02
    slow_share: float = 0.01
    failing_share: float = 0.001
    outage: tuple[float, float] = (0.0, 0.0)
    statement: float = 0.0005
    commit: float = 0.002
    processor_of_transaction: float = 0.0003
    processor_of_statement: float = 0.0003
    processor_of_row: float = 0.000003

    def processor(self, counts: Counter[str]) -> float:
        """Seconds of the processor that transactions with these statements and rows take."""
        return (
            self.processor_of_transaction * (counts["reads"] + counts["writes"])
            + self.processor_of_statement * counts["statements"]
            + self.processor_of_row * (counts["rows_read"] + counts["rows_written"])
        )


class Remote:
    """Calls to another machine, in virtual time. `counts` has their number by kind."""

    def __init__(self, time: VirtualTime, costs: Costs, seed: str) -> None:
        self._time = time
        self._costs = costs
        self._random = random.Random(seed)  # noqa: S311 - durations
        self.counts = Counter[str]()

    def call(self, kind: str, error: type[Exception], *, may_be_out: bool) -> None:
        """Let one call take its time. Raises `error` if it fails."""
        self.counts[kind] += 1
        costs, drawn = self._costs, self._random.random()
        slow = drawn < costs.slow_share
        self._time.sleep(costs.call * self._random.uniform(0.5, 1.5) * (10 if slow else 1))
        began, ended = costs.outage
        is_out = may_be_out and began <= self._time.seconds() < ended
        if is_out or drawn > 1 - costs.failing_share:
            raise error(f"{kind}: no response (on purpose)")


class RemoteStore(MemoryStore):
    """The objects of a store, as a replica reads and writes them. `see_live` is called with each live.json."""

    def __init__(
        self, memory: MemoryStore, remote: Remote, see_live: Callable[[str, bytes], None]
    ) -> None:
        super().__init__(memory.contents)
        self.remote = remote
        self._see_live = see_live

    def read(self, key: str) -> bytes:
        """See ObjectStore."""
        self._call("read")
        return super().read(key)

    def size(self, key: str) -> int:
        """See ObjectStore."""
        self._call("size")
        return len(super().read(key))

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        self._call("put")
        super().put(key, data)
        if key.endswith("/live.json"):
            self._see_live(key.split("/")[1], data)

    def create(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        self._call("create")
        super().create(key, data)

    def copy(self, source: str, target: str) -> None:
        """See ObjectStore."""
        self._call("copy")
        super().put(target, super().read(source))

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        self._call("delete")
        super().delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """See ObjectStore."""
        self._call("list")
        found = list(super().keys(prefix))
        for _ in range(_PAGE, len(found), _PAGE):
            self._call("list")
        return iter(found)

    def _call(self, kind: str) -> None:
        self.remote.call(kind, StorageUnavailable, may_be_out=True)


class RemoteLauncher:
    """A launcher as a replica calls it."""

    def __init__(self, launcher: Launcher, remote: Remote) -> None:
        self._launcher = launcher
        self.remote = remote

    def submit(self, submission: Submission) -> None:
        """See the port."""
        self._call("submit")
        self._launcher.submit(submission)

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        self._call("list")
        return self._launcher.statuses(submission_ids)

    def stop(self, submission_id: str) -> None:
        """See the port."""
        self._call("stop")
        self._launcher.stop(submission_id)

    def forget(self, submission_id: str) -> None:
        """See the port."""
        self._call("forget")
        self._launcher.forget(submission_id)

    def log(self, submission_id: str) -> str:
        """See the port."""
        self._call("log")
        return self._launcher.log(submission_id)

    def resources(self) -> ClusterResources | None:
        """See the port."""
        return self._launcher.resources()

    def _call(self, kind: str) -> None:
        self.remote.call(kind, LauncherUnavailable, may_be_out=False)


class VirtualStatusCache(StatusCache):
    """The product's cache of statuses, whose callers wait for each other in virtual time."""

    def __init__(self, launcher: Launcher, ttl: float, time: VirtualTime) -> None:
        super().__init__(launcher, ttl, time.seconds)
        self._listing = VirtualLock(time)  # type: ignore[assignment]


class Processor:
    """The one core of a replica: what needs it waits for what came before."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._free_at = 0.0
        self.busy = 0.0

    def use(self, seconds: float, latency: float) -> None:
        """Let a task compute for so long, and wait for `latency` seconds more."""
        now = self._time.seconds()
        self._free_at = max(now, self._free_at) + seconds
        self.busy += seconds
        self._time.sleep(self._free_at + latency - now)


class Statements:
    """Counts statements and rows of a database, by the name of the task that causes them."""

    def __init__(self, database: Database, task_name: Callable[[], str]) -> None:
        self._task_name = task_name
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        # Of the transaction that runs.
        self.current = Counter[str]()
        event.listen(database.engine, "connect", self._connected)
        event.listen(database.engine, "after_cursor_execute", self._executed)

    def begin(self) -> None:
        """Begin a transaction."""
        self.current = Counter()

    def end(self, kind: str) -> Counter[str]:
        """End a transaction; return what it had."""
        self.current[kind] += 1
        self.counts[self._task_name()].update(self.current)
        return self.current

    def _connected(self, connection: Any, _: Any) -> None:
        def read(_: Any, row: tuple[Any, ...]) -> tuple[Any, ...]:
            self.current["rows_read"] += 1
            return row

        connection.row_factory = read

    def _executed(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            return
        self.current["statements"] += 1
        if cursor.rowcount > 0:
            self.current["rows_written"] += cursor.rowcount


class RemoteDatabase(Database):
    """A database as a replica uses it: each transaction takes the time of its statements, and of the processor."""

    def __init__(
        self,
        database: Database,
        observe: Callable[[Event], None],
        statements: Statements,
        processor: Processor,
        costs: Costs,
    ) -> None:
        super().__init__(database.engine, WriterLock(), observe)
        self._statements = statements
        self._processor = processor
        self._costs = costs

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """See Database."""
        self._statements.begin()
        with super().write() as connection:
            yield connection
        self._take_time("writes", self._costs.commit)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """See Database."""
        self._statements.begin()
        with super().read() as connection:
            yield connection
        self._take_time("reads", 0.0)

    def _take_time(self, kind: str, latency: float) -> None:
        had = self._statements.end(kind)
        latency += self._costs.statement * had["statements"]
        self._processor.use(self._costs.processor(had), latency)
