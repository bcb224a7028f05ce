"""The driver's part of preparation: it carries out the requests in the store, some datasets at a time.

All of its state is in the store. Two drivers at once do some work twice and no harm: results are named by their
content, or the first writer counts.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageUnavailable
from cmcl.contract.prepare import PrepareFailure, PrepareReport, PrepareRequest
from cmcl.storage import layout
from cmcl.storage.documents import read_document, write_document
from cmcl.storage.object_store import ObjectStore
from workers.prepare.dataset import FIRST_ROWS, PreparationFailed, forget_units, write_rejected
from workers.prepare.progress import Cancelled, DatasetProgress, ProgressWriter

logger = logging.getLogger(__name__)

# Only a retry by a user replaces a request.
_SECONDS_BETWEEN_READS = 1.0
# One that cannot be read was perhaps written by another release, and may be replaced.
_SECONDS_BETWEEN_TRIES = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0

Prepare = Callable[[PrepareRequest, DatasetProgress], None]


@dataclass
class _Dataset:
    """A request of the last listing. `is_done`: it has a result."""

    request: PrepareRequest
    read_at: float
    progress: DatasetProgress
    work: Future[None] | None = None
    is_done: bool = False
    not_before: float = 0.0
    pause: float = _FIRST_PAUSE


@dataclass
class PrepareServer:
    """The datasets of a store. `prepare` carries out one request, in a thread of `executor`."""

    store: ObjectStore
    prepare: Prepare
    executor: Executor
    writer: ProgressWriter
    datasets_at_once: int
    clock: Callable[[], float] = time.monotonic
    _known: dict[str, _Dataset] = field(default_factory=dict)
    # When a request was last found to be unreadable, by dataset.
    _unreadable: dict[str, float] = field(default_factory=dict)
    _ending: list[Future[None]] = field(default_factory=list)
    # Owners in the order in which a request of each was last started.
    _served: dict[str, None] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """True if no request waits or is in work."""
        return not self._ending and all(known.is_done for known in self._known.values())

    def step(self) -> bool:
        """List the requests, cancel those that have disappeared, and start those whose turn it is.

        Returns whether one has come, gone or ended. Raises StorageUnavailable.
        """
        before = self._states()
        prefix = layout.preparations()
        listed = [key.removeprefix(prefix).removesuffix(".json") for key in self.store.keys(prefix)]
        for dataset in self._known.keys() - set(listed):
            self._cancel(dataset, "its request has disappeared")
        self._unreadable = {each: at for each, at in self._unreadable.items() if each in listed}
        for dataset in listed:
            self._look(dataset)
        self._take_results()
        self._start()
        return self._states() != before

    def close(self) -> None:
        """Cancel all requests."""
        for dataset in list(self._known):
            self._cancel(dataset, "the driver ends")

    def _states(self) -> dict[str, bool]:
        return {dataset: known.is_done for dataset, known in self._known.items()}

    def _look(self, dataset: str) -> None:
        """Read a request that is new, or that may have been replaced since it was started."""
        known = self._known.get(dataset)
        has_started = known is not None and (known.work is not None or known.is_done)
        if known is not None and not (
            has_started and self.clock() - known.read_at >= _SECONDS_BETWEEN_READS
        ):
            return
        if self.clock() - self._unreadable.get(dataset, -math.inf) < _SECONDS_BETWEEN_TRIES:
            return
        request = self._read(dataset)
        if known is not None:
            known.read_at = self.clock()
        if request is None or (known is not None and request == known.request):
            return
        if known is not None:
            self._cancel(dataset, f"request {request.request} replaces it")
        self._add(request)

    def _read(self, dataset: str) -> PrepareRequest | None:
        try:
            request = read_document(self.store, layout.preparation_request(dataset), PrepareRequest)
        except ObjectNotFound:
            return None  # The next listing will not have it either.
        except InvalidVersion as error:
            logger.error("the request for %s cannot be read: %s", dataset, error)  # noqa: TRY400
            self._unreadable[dataset] = self.clock()
            return None
        self._unreadable.pop(dataset, None)
        return request

    def _add(self, request: PrepareRequest) -> None:
        progress = DatasetProgress(
            request.dataset, request.request, traceparent=request.traceparent
        )
        known = _Dataset(request, self.clock(), progress)
        known.is_done = self._has_result(request)
        self._known[request.dataset] = known
        if not known.is_done:
            self.writer.watch(progress)

    def _has_result(self, request: PrepareRequest) -> bool:
        """Return whether an earlier driver wrote a failure or a report for this request."""
        kinds: dict[str, type[PrepareFailure | PrepareReport]]
        kinds = {"failure": PrepareFailure, "report": PrepareReport}
        for name, kind in kinds.items():
            try:
                key = layout.preparation_file(request.dataset, name)  # type: ignore[arg-type]
                if read_document(self.store, key, kind).request == request.request:
                    return True
            except (ObjectNotFound, InvalidVersion):
                continue
        return False

    def _start(self) -> None:
        """Start waiting requests, in the order of `chosen`."""
        now = self.clock()
        running = [known.request for known in self._known.values() if known.work is not None]
        waiting = [
            known.request
            for known in self._known.values()
            if known.work is None and not known.is_done and known.not_before <= now
        ]
        places = self.datasets_at_once - len(self._ending)
        for request in chosen(waiting, running, places, tuple(self._served)):
            known = self._known[request.dataset]
            assert known.work is None, "a dataset is started twice"
            self._served.pop(request.owner, None)
            self._served[request.owner] = None
            logger.info("dataset %s: starts (request %d)", request.dataset, request.request)
            known.work = self.executor.submit(self._carry_out, known)
        for known in self._known.values():
            if known.work is None and not known.is_done and known.not_before <= now:
                known.progress.check(f"waits while {self.datasets_at_once} datasets are prepared")

    def _carry_out(self, known: _Dataset) -> None:
        """Carry out a request, in its thread. Raises errors after which it is retried."""
        request, progress, began = known.request, known.progress, time.monotonic()
        about = f"dataset {request.dataset}"
        try:
            self.prepare(request, progress)
        except Cancelled:
            logger.info("%s: cancelled", about)
            return
        except PreparationFailed as failure:
            logger.info("%s: %s: %s", about, failure.reason, failure)
            progress.write_stages(self.store)
            self._write_failure(request, failure)
            return
        rows, seconds = progress.rows, time.monotonic() - began
        logger.info(
            "%s: done in %.2f s, %d rows, %d left out, %d items encoded",
            *(about, seconds, rows.done, rows.bad, progress.encoded),
        )

    def _write_failure(self, request: PrepareRequest, failure: PreparationFailed) -> None:
        rejected = failure.prepared.rejected
        write_rejected(self.store, request.dataset, rejected)
        failed = PrepareFailure(
            request=request.request,
            reason=failure.reason,
            message=str(failure),
            rejected_rows=len(rejected),
            rejected=rejected[:FIRST_ROWS],
            needed_share=failure.prepared.needed_share,
        )
        key = layout.preparation_file(request.dataset, "failure")
        write_document(self.store, key, failed)
        forget_units(self.store, request.dataset)

    def _take_results(self) -> None:
        """Find requests that have ended, and schedule a retry of those that failed."""
        self._ending = [work for work in self._ending if not work.done()]
        for known in self._known.values():
            if known.work is None or not known.work.done():
                continue
            error, known.work = known.work.exception(), None
            if error is None:
                known.is_done = True
                self.writer.forget(known.progress)
                continue
            self._try_again(known, error)

    def _try_again(self, known: _Dataset, error: BaseException) -> None:
        about = f"dataset {known.request.dataset}"
        if isinstance(error, StorageUnavailable):
            logger.warning("%s: will retry in %g s: %s", about, known.pause, error)
            note = f"is tried again: {error}"
        else:
            logger.error("%s: will retry in %g s", about, known.pause, exc_info=error)
            note = f"is tried again after an internal error ({type(error).__name__}); see the log"
        known.progress.check(note)
        known.not_before = self.clock() + known.pause
        known.pause = min(2 * known.pause, _LONGEST_PAUSE)

    def _cancel(self, dataset: str, why: str) -> None:
        known = self._known.pop(dataset)
        self.writer.forget(known.progress)
        if known.work is None or known.work.done():
            return
        logger.info("dataset %s: is cancelled, %s", dataset, why)
        known.progress.cancel()
        self._ending.append(known.work)


def chosen(
    waiting: Iterable[PrepareRequest],
    running: Iterable[PrepareRequest],
    places: int,
    served: Sequence[str] = (),
) -> list[PrepareRequest]:
    """Return the waiting requests to start: the oldest of the owner with the fewest requests in work, and so on.

    Of several such owners, the one that was served least recently; `served` has those that were, latest last. The last
    of several places is kept for an owner without a request in work.
    """
    of_owner = Counter(request.owner for request in running)
    left, found = places - of_owner.total(), []
    candidates, last = list(waiting), {owner: at for at, owner in enumerate(served, 1)}
    while left > 0 and candidates:
        request = min(candidates, key=lambda one: (of_owner[one.owner], last.get(one.owner, 0)))
        if left == 1 and places > 1 and of_owner[request.owner]:
            break
        candidates.remove(request)
        found.append(request)
        of_owner[request.owner] += 1
        last[request.owner] = len(served) + len(found)
        left -= 1
    assert not found or of_owner.total() <= places
    return found
