"""Where preparation runs: functions on warm worker processes of Ray, some units at a time, and encoders beside them."""

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import StorageUnavailable, WorkerError
from workers.encoders.port import EncoderMismatch, EncoderUnusable
from workers.prepare.encoder_pool import EncoderPools
from workers.prepare.encoding import EncoderLost, LeasedEncoder
from workers.prepare.progress import Cancelled
from workers.prepare.settings import PrepareSettings
from workers.sandbox.child import share_of_memory
from workers.sandbox.limits import give_way_to_queries

T = TypeVar("T")
R = TypeVar("R")
Options = dict[str, Any]
Check = Callable[[str], None]

# Errors of functions on workers that the driver understands. Others are bugs.
KNOWN_ERRORS = (WorkerError, Cancelled, EncoderLost, EncoderMismatch, EncoderUnusable)
_RETRIES = 3
_POLL_SECONDS = 0.2
_SECONDS_UNTIL_NOTE = 2.0
_GIB = 1 << 30
# Part of the memory that Ray counts for a node: two units in work leave a third to encoders.
_FILE_SHARE = 4
_LEAST_FILE_MEMORY, _MOST_FILE_MEMORY = _GIB, 8 * _GIB
# Memory of a worker process: batches in flight, and an image of 64 million pixels in two copies.
_WORKER_MEMORY = _GIB // 2


class Cluster(Protocol):
    """Port of the cluster: it runs functions of `tasks.py`.

    `check` is called while a call waits, with the cause or an empty text. It may raise.
    """

    @property
    def file_memory(self) -> int:
        """Bytes of memory of each process that reads files. A unit has one."""
        ...

    def run(self, function: Callable[..., R], *arguments: Any, check: Check) -> R:
        """Return the result of one call on a worker. Raises its error; StorageUnavailable if its process dies on each try."""
        ...

    def map(
        self,
        function: Callable[[Any, T], Iterator[R]],
        common: Any,
        items: Sequence[T],
        *,
        check: Check,
    ) -> Iterator[tuple[T, R | Exception]]:
        """Yield what `function(common, item)` yields or raises, for all items, some at a time, in any order.

        Raises StorageUnavailable if the process of an item dies on each try.
        """
        ...

    def lease(
        self, spec: EncoderSpec, units: int, check: Check
    ) -> AbstractContextManager[LeasedEncoder]:
        """Lease an encoder. See `EncoderPools.lease`."""
        ...

    def identity_of(self, spec: EncoderSpec) -> EncoderIdentity | None:
        """Return the identity that the encoder had when it was leased last; None: it was not."""
        ...


class RayCluster:
    """The Ray cluster of this process."""

    def __init__(
        self, pools: EncoderPools, settings: PrepareSettings, units_at_once: int | None = None
    ) -> None:
        """`units_at_once`: of one dataset; None: a quarter of the cluster's CPUs, at least 2."""
        self.lease, self.end_idle = pools.lease, pools.end_idle
        self.identity_of = pools.identity_of
        self._units_at_once = units_at_once
        self._settings = settings
        self._known_memory: tuple[int, int] | None = None
        self._warming: list[Any] = []
        self._call: Any = ray.remote(_call)
        self._results: Any = ray.remote(_results)

    @property
    def file_memory(self) -> int:
        """See Cluster."""
        return self._memory[0]

    @property
    def _memory(self) -> tuple[int, int]:
        """Memory of a unit in bytes: of the process that reads its files, and what Ray reserves for the unit.

        Blocked in `ray.get`, a unit gives its CPU to another one, but not its memory. So reservations bound the sum.
        """
        if self._known_memory is not None:
            return self._known_memory
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        found = [each["Resources"] for each in nodes if each["Alive"]]
        smallest = min(
            (int(each["memory"]) for each in found if each.get("CPU", 0) >= 1), default=0
        )
        if not smallest:
            # Without a node yet, one of the size of this machine is expected.
            file = self._settings.file_memory or share_of_memory()
            return file, file + _WORKER_MEMORY
        share = max(_LEAST_FILE_MEMORY, min(_MOST_FILE_MEMORY, smallest // _FILE_SHARE))
        file = self._settings.file_memory or share
        # What does not fit any node would wait without end.
        self._known_memory = file, min(file + _WORKER_MEMORY, smallest)
        return self._known_memory

    @property
    def _options(self) -> Options:
        return {"num_cpus": 1, "memory": self._memory[1]}

    def warm_up(self, function: Callable[[int], None], workers: int) -> None:
        """Start worker processes that call `function` with `file_memory`, without waiting for them."""
        for _ in range(workers):
            self._warming.append(
                self._call.options(**self._options).remote(function, self.file_memory)
            )

    @property
    def is_warm(self) -> bool:
        """Whether the worker processes of `warm_up` have called their function."""
        waiting = self._warming
        if waiting:
            _, self._warming = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return not self._warming

    def run(self, function: Callable[..., R], *arguments: Any, check: Check) -> R:
        """See Cluster."""
        call = self._call.options(**self._options, max_retries=_RETRIES).remote(
            function, *arguments
        )
        with _cancelled_on_error([call]):
            self._wait([call], check)
            try:
                result: R | Exception = ray.get(call)
            except RayError as error:
                raise _lost(error) from error
        if isinstance(result, Exception):
            raise result
        return result

    def map(
        self,
        function: Callable[[Any, T], Iterator[R]],
        common: Any,
        items: Sequence[T],
        *,
        check: Check,
    ) -> Iterator[tuple[T, R | Exception]]:
        """See Cluster."""
        common = ray.put(common)
        waiting = deque(_Tries(item) for item in items)
        running: dict[Any, _Tries[T]] = {}
        with _cancelled_on_error(running):
            while waiting or running:
                while waiting and len(running) < self._at_once():
                    tries = waiting.popleft()
                    # Ray expects the same number of results from a retry, and these have as many as there is
                    # time for.
                    start = self._results.options(**self._options, max_retries=0).remote
                    running[start(function, common, tries.item)] = tries
                for stream in self._wait(running, check):
                    tries = running[stream]
                    try:
                        step: R | Exception = ray.get(next(stream))
                    except StopIteration:
                        del running[stream]
                        continue
                    except RayError as error:
                        del running[stream]
                        tries.lost += 1
                        if tries.lost > _RETRIES:
                            raise _lost(error) from error
                        waiting.appendleft(tries)
                        continue
                    yield tries.item, step

    def _at_once(self) -> int:
        if self._units_at_once:
            return self._units_at_once
        cpus: float = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        return max(2, int(cpus) // 4)

    def _wait(self, calls: Iterable[Any], check: Check) -> list[Any]:
        """Wait until at least one of the calls is done or has a result."""
        waited = 0.0
        while True:
            done: list[Any]
            done, _ = ray.wait(list(calls), num_returns=1, timeout=_POLL_SECONDS)
            if done:
                return done
            waited += _POLL_SECONDS
            check(self._missing() if waited > _SECONDS_UNTIL_NOTE else "")

    def _missing(self) -> str:
        """Return what another unit would wait for; empty if it could start."""
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        _, reserved = self._memory
        if free.get("CPU", 0.0) >= 1 and free.get("memory", 0.0) >= reserved:
            return ""
        return f"waits for a free CPU and {reserved / _GIB:.1f} GiB of free memory of the cluster"


def _call(function: Callable[..., R], *arguments: Any) -> R | Exception:
    give_way_to_queries()
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - the driver decides what it means
        return _portable(error)


def _results(function: Callable[..., Iterator[R]], *arguments: Any) -> Iterator[R | Exception]:
    give_way_to_queries()
    try:
        yield from function(*arguments)
    except Exception as error:  # noqa: BLE001 - the driver decides what it means
        yield _portable(error)


def _portable(error: Exception) -> Exception:
    """Return an error that the driver knows, in place of one that is a bug; the log of this worker has its traceback."""
    if isinstance(error, KNOWN_ERRORS):
        return error
    traceback.print_exception(error)
    name = type(error).__name__
    return StorageUnavailable(f"internal error ({name}); see the log of the worker")


def _lost(error: RayError) -> StorageUnavailable:
    return StorageUnavailable(f"a worker process of the cluster was lost: {error}")


@dataclass
class _Tries(Generic[T]):
    """An item, and how often its process was lost."""

    item: T
    lost: int = 0


@contextmanager
def _cancelled_on_error(calls: Iterable[Any]) -> Iterator[None]:
    """Cancel the remaining calls if the block raises."""
    try:
        yield
    except BaseException:
        for call in calls:
            ray.cancel(call)
        raise
