"""The driver's part of training: it carries out the requests in the store with pools of ranks.

All of its state is in the store. The next driver takes up requests without an outcome: an attempt leaves a complete
candidate as it is, and resumes from its checkpoints. Two drivers at once do some work twice and no harm: the first
outcome and the first candidate count.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from cmcl.contract.errors import InvalidVersion, ObjectExists, ObjectNotFound
from cmcl.contract.job import AttemptOutcome, AttemptRequest, Phase, Progress
from cmcl.storage import layout
from cmcl.storage.documents import document, read_document
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.running import ProgressWriter
from workers.train.queue import RESTARTS, Attempt, AttemptStatus
from workers.train.settings import PoolSetup

logger = logging.getLogger(__name__)

# An attempt waits for the resident ranks for as long as ranks of its own would take to start. Then it gets some if the
# cluster has resources for them. The next one waits as long again: these have not taken their resources yet.
_QUEUE_SECONDS, _SECONDS_BETWEEN_LOOKS = 20.0, 1.0
# Object stores charge for every write, and the control plane waits for minutes.
_REPORT_SECONDS = 5.0
_UNREADABLE = "the driver cannot read the request, which may be of another release"
_STARTING = "the training ranks are starting"


class PoolLost(Exception):
    """A pool has ended, or cannot keep its ranks running; the message says why."""


class Pool(Protocol):
    """A group of ranks that trains one attempt after another."""

    setup: PoolSetup

    def has_started(self) -> bool:
        """Whether its ranks are there. Does not wait for them."""
        ...

    def exchange(self, wanted: Mapping[Attempt, str]) -> Mapping[Attempt, AttemptStatus]:
        """Set the attempts that are wanted, with owners of their jobs; others leave the queue, or are stopped.

        Returns the status of each, or nothing while the pool does not respond yet. Raises PoolLost.
        """
        ...

    def end(self) -> None:
        """End the pool and its ranks, also if it has ended."""
        ...


@dataclass
class _Entry:
    """A request of the last listing, by its submission id `name`.

    `own`: a pool for it alone. `status`: what its pool has returned last. `losses`: how many pools have ended while it
    was next or in training. `reported`: the phase that was written last.
    """

    name: str
    request: AttemptRequest
    attempt: Attempt
    setup: PoolSetup
    began: float
    writer: ProgressWriter
    own: Pool | None = None
    status: AttemptStatus | None = None
    losses: int = 0
    reported: Phase | None = None
    reported_at: float = 0.0


@dataclass
class AttemptServer:
    """The attempts of a store. `resident`: the pool that all share, if it was started before the first one.

    `start` starts a pool, `setup_of` returns the setup that a request needs now, `has_room` whether the cluster has
    resources for one.
    """

    store: ObjectStore
    start: Callable[[PoolSetup], Pool]
    setup_of: Callable[[AttemptRequest], PoolSetup]
    has_room: Callable[[PoolSetup], bool]
    idle_seconds: float
    resident: Pool | None = None
    clock: Callable[[], float] = time.monotonic
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _used_at: float = field(init=False)
    # When the cluster is next asked whether it has room for a pool of its own for an attempt that waits.
    _look_at: float = 0.0

    def __post_init__(self) -> None:
        self._used_at = self.clock()

    @property
    def is_idle(self) -> bool:
        """True if no attempt waits or is trained."""
        return not self._entries

    @property
    def is_warm(self) -> bool:
        """Whether the resident ranks are there, or none start before the first attempt."""
        return self.resident is None or self.resident.has_started()

    def step(self) -> bool:
        """List the requests, stop attempts without one, and update the status of the others.

        Returns whether one has come, gone or ended. Raises StorageUnavailable.
        """
        before = set(self._entries)
        self._list()
        self._place()
        for pool in self._pools():
            self._exchange(pool)
        return set(self._entries) != before

    def close(self) -> None:
        """End all ranks."""
        for pool in self._pools():
            pool.end()

    def _pools(self) -> list[Pool]:
        own = [entry.own for entry in self._entries.values()]
        return [pool for pool in (self.resident, *own) if pool is not None]

    def _list(self) -> None:
        prefix = layout.attempts()
        listed = [key.removeprefix(prefix).removesuffix(".json") for key in self.store.keys(prefix)]
        for name in self._entries.keys() - set(listed):
            logger.info("attempt %s: is stopped, its request has disappeared", name)
            self._remove(name)
        for name in listed:
            if name not in self._entries:
                self._add(name)

    def _add(self, name: str) -> None:
        assert name not in self._entries, "a request is taken up once"
        try:
            request = read_document(self.store, layout.attempt_request(name), AttemptRequest)
        except ObjectNotFound:
            return
        except InvalidVersion as error:
            # Perhaps of another release: the control plane starts another attempt, and reports the message.
            self._end(name, AttemptOutcome(state="failed", message=f"{_UNREADABLE}: {error}"))
            return
        if self._has_outcome(name):
            # Whoever wrote it did not come to delete the request.
            self.store.delete(layout.attempt_request(name))
            return
        self.idle_seconds = request.idle_seconds
        self._entries[name] = _Entry(
            name,
            request,
            Attempt(self.store.uri, request.job, request.attempt),
            self.setup_of(request),
            self.clock(),
            ProgressWriter(self.store, request.job, request.attempt),
        )
        logger.info("attempt %s: is taken up", name)

    def _has_outcome(self, name: str) -> bool:
        try:
            self.store.size(layout.attempt_outcome(name))
        except ObjectNotFound:
            return False
        return True

    def _place(self) -> None:
        """Start, replace and end pools: each attempt has one, or waits until the resident pool is free for its setup."""
        now = self.clock()
        shared = [entry for entry in self._entries.values() if entry.own is None]
        if self.resident is not None:
            is_idle = 0 < self.idle_seconds <= now - self._used_at
            if self._users(self.resident):
                self._used_at = now
            elif shared or is_idle:
                why = "an attempt needs other ranks or other code" if shared else "they are idle"
                logger.info("the resident ranks end: %s", why)
                self.resident.end()
                self.resident = None
        if self.resident is None and shared:
            self.resident, self._used_at = self.start(shared[0].setup), now
        waiting = [entry for entry in shared if self._waits(entry)]
        late = next((each for each in waiting if now - each.began >= _QUEUE_SECONDS), None)
        if late is not None and now >= self._look_at:
            if self.has_room(late.setup):
                assert late.own is None
                logger.info("attempt %s: gets ranks of its own", late.name)
                late.own, late.status = self.start(late.setup), None
            self._look_at = now + (_QUEUE_SECONDS if late.own else _SECONDS_BETWEEN_LOOKS)
        for entry in waiting:
            self._report(entry, "waiting")

    def _users(self, pool: Pool) -> list[_Entry]:
        """The attempts in the queue of a pool."""
        return [
            entry
            for entry in self._entries.values()
            if entry.own is pool
            or (entry.own is None and pool is self.resident and entry.setup == pool.setup)
        ]

    def _waits(self, entry: _Entry) -> bool:
        """Whether the resident pool trains others before it."""
        is_other = self.resident is not None and entry.setup != self.resident.setup
        return is_other or entry.status == "waiting"

    def _exchange(self, pool: Pool) -> None:
        users = self._users(pool)
        try:
            statuses = pool.exchange({entry.attempt: entry.request.owner for entry in users})
        except PoolLost as error:
            self._end_lost(pool, users, str(error))
            return
        for entry in users:
            if entry.attempt in statuses:
                self._update(entry, statuses[entry.attempt])

    def _update(self, entry: _Entry, status: AttemptStatus) -> None:
        entry.status = status
        if isinstance(status, AttemptOutcome):
            self._end(entry.name, status)
        elif status == "starting":
            self._report(entry, "starting", _STARTING)

    def _end_lost(self, pool: Pool, users: list[_Entry], why: str) -> None:
        """Have the attempts of a pool that has ended trained by the next resident one."""
        logger.error("ranks were lost: %s", why)
        pool.end()
        if pool is self.resident:
            self.resident = None
        for entry in users:
            if entry.status in (None, "starting", "running"):
                entry.losses += 1
                assert entry.losses <= RESTARTS + 1
            entry.own = entry.status = None
            if entry.losses > RESTARTS:
                message = f"the process of its ranks ended {entry.losses} times: {why}"
                self._end(entry.name, AttemptOutcome(state="failed", message=message))

    def _report(self, entry: _Entry, phase: Phase, note: str | None = None) -> None:
        """Write the progress of an attempt without ranks: when it changes, and while it waits, as a sign of life."""
        now = self.clock()
        is_due = phase == "waiting" and now - entry.reported_at >= _REPORT_SECONDS
        if phase != entry.reported or is_due:
            entry.writer.write(Progress(phase=phase, note=note, at=datetime.now(UTC)))
            entry.reported, entry.reported_at = phase, now

    def _end(self, name: str, outcome: AttemptOutcome) -> None:
        try:
            key = layout.attempt_outcome(name)
            self.store.create(key, document(outcome, key))
        except ObjectExists:
            pass  # It was stopped, or another driver has ended it.
        self.store.delete(layout.attempt_request(name))
        logger.info("attempt %s: %s %s", name, outcome.state, outcome.message)
        self._remove(name)

    def _remove(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None and entry.own is not None:
            entry.own.end()
