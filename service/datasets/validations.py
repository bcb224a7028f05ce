"""Validations in the background: a fair queue, a few at a time, and their results.

They are not stored: a control plane that restarts validates again.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from functools import partial

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.errors import StorageUnavailable, WorkerError
from service.datasets.verify import CancelToken, InProcessValidator, ValidationTask, Validator
from workers.storage.object_store import ObjectStore

logger = logging.getLogger(__name__)

# Each takes a processor and memory; three leave enough for everything else.
_MAX_RUNNING = 3
# Time for killed processes to exit and to remove their copies of files.
_CLOSE_SECONDS = 2.0

Validate = Callable[[ObjectStore, ValidationTask], DatasetManifest]
Work = Callable[[Validate], DatasetManifest]


@dataclass(frozen=True)
class Ticket:
    """A place in the queue: a dataset, the revision of its job, and the owner.

    The result for an earlier revision does not count: another replica may have validated the job in between,
    and the files may have changed.
    """

    dataset: str
    revision: int
    owner: str


class FairQueue:
    """Bounded concurrency, fair between owners: the last slot is kept for an owner that has none. Thread-safe."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._waiting: list[Ticket] = []
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()

    def put(self, ticket: Ticket) -> None:
        """Queue a ticket behind those that wait."""
        with self._lock:
            self._waiting.append(ticket)

    def discard(self, ticket: Ticket) -> None:
        """Remove a ticket, if it waits."""
        with self._lock:
            self._waiting = [other for other in self._waiting if other != ticket]

    def take(self) -> Ticket | None:
        """Take the oldest ticket of the owner with the fewest slots; None if none may start."""
        with self._lock:
            free = self._slots - self._running.total()
            able = [each for each in self._waiting if free > 1 or not self._running[each.owner]]
            if free < 1 or not able:
                return None
            ticket = min(able, key=lambda each: self._running[each.owner])
            self._waiting.remove(ticket)
            self._running[ticket.owner] += 1
            return ticket

    def done(self, ticket: Ticket) -> None:
        """Free the slot of a ticket that was taken."""
        with self._lock:
            self._running[ticket.owner] -= 1
            # Drop owners without slots: the process runs for years.
            self._running += Counter()


@dataclass
class _Validation:
    """A validation that was requested; it has a future once it was started."""

    ticket: Ticket
    work: Work
    cancel_token: CancelToken = field(default_factory=CancelToken)
    future: Future[DatasetManifest] | None = None


class Validations:
    """Requested validations. One thread asks for results; `when_done` is called by any thread."""

    def __init__(
        self, executor: Executor, when_done: Callable[[], None], validator: Validator | None = None
    ) -> None:
        self._executor = executor
        self._when_done = when_done
        self._validator = validator or InProcessValidator()
        self._queue = FairQueue(_MAX_RUNNING)
        self._requested: dict[str, _Validation] = {}

    def result(self, ticket: Ticket, work: Work) -> DatasetManifest | None:
        """Return what `work` returned or raise what it raised; None while it waits or runs.

        The first call starts it. `work` is called with the function that validates. An exception other than
        WorkerError becomes StorageUnavailable.
        """
        if not self.is_pending(ticket):
            self.cancel(ticket.dataset)
            self._requested[ticket.dataset] = _Validation(ticket, work)
            self._queue.put(ticket)
            self._start()
        future = self._requested[ticket.dataset].future
        if future is None or not future.done():
            return None
        del self._requested[ticket.dataset]
        return _result(future, ticket.dataset)

    def is_pending(self, ticket: Ticket) -> bool:
        """Return whether it was requested in this process and its result was not taken yet."""
        requested = self._requested.get(ticket.dataset)
        return requested is not None and requested.ticket == ticket

    def cancel(self, dataset: str) -> None:
        """Cancel the validation of the dataset, if there is one."""
        requested = self._requested.pop(dataset, None)
        if requested is None:
            return
        self._queue.discard(requested.ticket)
        requested.cancel_token.cancel()
        if requested.future is not None:
            requested.future.cancel()

    def close(self) -> None:
        """Cancel all validations, and wait some seconds for those that run."""
        running = [each.future for each in self._requested.values() if each.future is not None]
        for dataset in list(self._requested):
            self.cancel(dataset)
        self._executor.shutdown(wait=False, cancel_futures=True)
        wait(running, _CLOSE_SECONDS)

    def _start(self) -> None:
        while (ticket := self._queue.take()) is not None:
            requested = self._requested.get(ticket.dataset)
            if requested is None or requested.ticket != ticket:
                # Cancelled after it was taken.
                self._queue.done(ticket)
                continue
            self._submit(requested)

    def _submit(self, requested: _Validation) -> None:
        validate = partial(self._validator.validate, cancel_token=requested.cancel_token)
        try:
            requested.future = self._executor.submit(requested.work, validate)
        except BaseException:
            # No thread could be started; in tests also the simulated death of the process.
            self._queue.done(requested.ticket)
            self._requested.pop(requested.ticket.dataset, None)
            raise
        requested.future.add_done_callback(lambda _: self._end(requested.ticket))

    def _end(self, ticket: Ticket) -> None:
        self._queue.done(ticket)
        self._start()
        self._when_done()


def _result(future: Future[DatasetManifest], dataset: str) -> DatasetManifest:
    try:
        return future.result()
    except WorkerError:
        raise
    except Exception as error:
        # A bug or a full disk: worth a retry until the start deadline.
        logger.exception("dataset %s could not be read", dataset, extra={"dataset": dataset})
        message = (
            f"the shards could not be read ({type(error).__name__}); see the log of the service"
        )
        raise StorageUnavailable(message) from error
