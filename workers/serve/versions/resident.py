"""Versions in memory: those that answered last, so that rolling back reads nothing; those on trial;
and those that requests name exactly (`name@7`), loaded on demand. Most of a version is in the one before
as well, and held once for both.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from cmcl.contract.errors import WorkerError
from workers.serve.errors import Overloaded
from workers.serve.metrics import ServeMetrics
from workers.serve.versions.loading import ServedVersion

# Beside the one that answers, of each model.
KEPT_FOR_ROLLING_BACK = 4
_FAILURE_SECONDS = 1.0
_MOST_FAILURES = 1024
_LOADING_THREADS = 2

_Key = tuple[str, int]


@dataclass(frozen=True)
class _Failure:
    """Words only: an exception would hold on to the bytes of what could not be read."""

    kind: type[WorkerError]
    words: str
    until: float


class ResidentVersions:
    """Used by the follower's threads and by the event loop; the lock is held for moments only."""

    def __init__(
        self,
        load: Callable[[str, int], ServedVersion],
        recent: int,
        metrics: ServeMetrics,
        clock: Callable[[], float] = time.monotonic,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """`recent`: how many of those that requests named are kept, and how many may be loading.

        `threads`: that load what requests name.
        """
        self._load = load
        self._recent = recent
        self._metrics = metrics
        self._clock = clock
        self._answered: dict[str, OrderedDict[int, ServedVersion]] = {}
        self._candidates: dict[str, ServedVersion] = {}
        self._named: OrderedDict[_Key, ServedVersion] = OrderedDict()
        self._loading: dict[_Key, Future[ServedVersion]] = {}
        self._loading_for_requests: set[Future[ServedVersion]] = set()
        self._failed: OrderedDict[_Key, _Failure] = OrderedDict()
        self._lock = threading.Lock()
        # Their own: whoever asks for many versions must not delay a swap.
        self._threads = threads or ThreadPoolExecutor(_LOADING_THREADS, "named-version")

    def get(self, model: str, number: int) -> ServedVersion | None:
        """The version, if it is in memory."""
        with self._lock:
            return self._find((model, number))

    def of(self, model: str) -> list[ServedVersion]:
        """All versions of this model that are in memory."""
        with self._lock:
            named = {number: each for (name, number), each in self._named.items() if name == model}
            candidate = self._candidates.get(model)
            tried = {candidate.number: candidate} if candidate is not None else {}
            return list({**named, **tried, **self._answered.get(model, {})}.values())

    async def find(self, model: str, number: int) -> ServedVersion:
        """The version, for a request; those that ask for it at the same time share one load.

        Raises what loading raises, Overloaded where as many as may be are loading, and RuntimeError where
        no thread can be started. Where trying
        again cannot help, that is remembered for a second: a client that asks for what is not there
        must not keep the store busy.
        """
        key = (model, number)
        with self._lock:
            found = self._find(key)
            if found is not None:
                return found
            self._raise_if_failed(key)
            future = self._loading.get(key) or self._begin_named(key)
        # Shielded: a client that hangs up must not take the others' load with it.
        return await asyncio.shield(asyncio.wrap_future(future))

    def load(self, model: str, number: int) -> ServedVersion:
        """The version, for a swap, in the caller's thread. Raises what loading raises."""
        key = (model, number)
        with self._lock:
            found = self._find(key)
            if found is not None:
                return found
            future = self._loading.setdefault(key, Future())
            mine = _claimed(future)
        if mine:
            self._fill(future, key, lambda _: None)
        return future.result()

    def hold(self, live: ServedVersion, candidate: ServedVersion | None) -> None:
        """These two answer; keep them, and some of those that answered before."""
        with self._lock:
            answered = self._answered.setdefault(live.model, OrderedDict())
            answered[live.number] = live
            answered.move_to_end(live.number)
            while len(answered) > 1 + KEPT_FOR_ROLLING_BACK:
                answered.popitem(last=False)
            self._candidates.pop(live.model, None)
            if candidate is not None:
                self._candidates[live.model] = candidate
            self._named.pop((live.model, live.number), None)
            self._report()

    def retire(self, model: str, numbers: Collection[int]) -> None:
        """Drop these versions; a load that is under way is not kept."""
        with self._lock:
            answered = self._answered.get(model, OrderedDict())
            for number in numbers:
                answered.pop(number, None)
                self._named.pop((model, number), None)
                self._loading.pop((model, number), None)
            self._report()

    def forget(self, model: str) -> None:
        """Drop every version of a model that is gone."""
        with self._lock:
            self._answered.pop(model, None)
            self._candidates.pop(model, None)
            for kept in (self._named, self._loading, self._failed):
                for key in [key for key in kept if key[0] == model]:
                    del kept[key]
            self._report()

    def _find(self, key: _Key) -> ServedVersion | None:
        model, number = key
        if key in self._named:
            self._named.move_to_end(key)
            return self._named[key]
        candidate = self._candidates.get(model)
        if candidate is not None and candidate.number == number:
            return candidate
        answered = self._answered.get(model)
        return None if answered is None else answered.get(number)

    def _begin_named(self, key: _Key) -> Future[ServedVersion]:
        under_way = len(self._loading_for_requests)
        if under_way >= self._recent:
            model, number = key
            raise Overloaded(
                f"{model}@{number} is not in memory, and {under_way} versions that requests name are "
                f"being loaded; permitted are {self._recent} at a time; try again",
                "model",
                "too_many_loads",
            )
        future = self._loading[key] = Future()
        self._loading_for_requests.add(future)
        try:
            self._threads.submit(self._load_named, future, key)
        except RuntimeError:
            # Otherwise this version would count as loading for ever.
            del self._loading[key]
            self._loading_for_requests.discard(future)
            future.cancel()
            raise
        return future

    def _load_named(self, future: Future[ServedVersion], key: _Key) -> None:
        with self._lock:
            mine = _claimed(future)
        if mine:
            self._fill(future, key, self._keep_named)

    def _fill(
        self, future: Future[ServedVersion], key: _Key, keep: Callable[[ServedVersion], None]
    ) -> None:
        try:
            version = self._load(*key).sharing(self.of(key[0]))
        except Exception as error:  # noqa: BLE001 - whatever it is, all who wait get to see it
            self._ended(future, key, partial(self._remember, key, error))
            future.set_exception(error)
        else:
            self._ended(future, key, partial(keep, version))
            future.set_result(version)

    def _ended(
        self, future: Future[ServedVersion], key: _Key, remember: Callable[[], None]
    ) -> None:
        with self._lock:
            self._loading_for_requests.discard(future)
            # Otherwise it was retired, or its model deleted, while it loaded.
            if self._loading.get(key) is future:
                del self._loading[key]
                remember()

    def _keep_named(self, version: ServedVersion) -> None:
        self._named[version.model, version.number] = version
        if len(self._named) > self._recent:
            self._named.popitem(last=False)
        self._report()

    def _remember(self, key: _Key, error: Exception) -> None:
        if isinstance(error, WorkerError) and not error.retry_can_help:
            until = self._clock() + _FAILURE_SECONDS
            self._failed[key] = _Failure(type(error), str(error), until)
            self._failed.move_to_end(key)
            if len(self._failed) > _MOST_FAILURES:
                self._failed.popitem(last=False)

    def _raise_if_failed(self, key: _Key) -> None:
        failure = self._failed.get(key)
        if failure is not None and self._clock() < failure.until:
            raise failure.kind(failure.words)

    def _report(self) -> None:
        answered = sum(len(each) for each in self._answered.values())
        self._metrics.resident(answered + len(self._candidates) + len(self._named))


def _claimed(future: Future[ServedVersion]) -> bool:
    """Whether the caller is the one to load it. Called with the lock.

    A swap takes a load that only waits for its turn away from the requests' threads.
    """
    if future.running() or future.done():
        return False
    return future.set_running_or_notify_cancel()
