"""Where preparation runs: functions on warm worker processes of Ray, some units at a time, and encoders beside them.

Encoders are actors that outlive a dataset, a pool for each declaration. An actor loads its encoder once, and compares it
with the record in the store. Each batch names the digest of the expected identity: an actor that restarted with another
model refuses it.

Shapes: B items of a batch, F width of the feature.
"""

import hashlib
import logging
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import ray
from PIL import Image
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from ray.exceptions import GetTimeoutError, RayError

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import StorageUnavailable, WorkerError
from cmcl.memory import release_memory_every
from cmcl.storage.object_store import retry_unavailable
from cmcl.storage.uris import open_store
from workers.encoders.identity import check_or_record
from workers.encoders.media import Decoded
from workers.encoders.port import EncoderMismatch, EncoderUnusable, FrozenEncoder, load_encoder
from workers.prepare.encoding import Encode, Encoded, EncoderLost, LeasedEncoder, encode_batch
from workers.prepare.progress import Cancelled
from workers.sandbox.child import share_of_memory
from workers.sandbox.child_process import give_way_to_queries

logger = logging.getLogger(__name__)

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
# An actor that dies is restarted, and its batch is sent a second time. Both numbers are finite: a batch may be the
# cause.
_RESTARTS = 20
_TRIES_OF_A_BATCH = 2
# How much longer than the first actor of a pool the other actors may take to start.
_GRACE_SECONDS = 5.0
# An encoder keeps what a batch has freed for the next one, also when there is none.
_RELEASE_SECONDS = 20.0
# A batch that was encoded when the process ended may be the cause, or a node that is short of memory.
_MOST_ENDS = 3


class PrepareSettings(BaseSettings):
    """Environment variables of preparation (prefix `CMCL_PREPARE_`)."""

    model_config = SettingsConfigDict(env_prefix="CMCL_PREPARE_", frozen=True, extra="ignore")

    file_memory: int = Field(
        default=0,
        ge=0,
        description="bytes of memory of a process that reads files of users; 0: a quarter of the memory that Ray "
        "counts for the smallest node, 1 to 8 GiB. Each unit in work has one such process, and reserves this and "
        "0.5 GiB of its node's memory",
    )


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


class RayLease(LeasedEncoder):
    """An encoder whose processes are actors of Ray."""

    def connect(self, first: int, what: str) -> Encode:
        """See LeasedEncoder. Batches go to the actors in turn."""
        actors: dict[str, Any] = {}
        numbers = count()

        def encode(items: Sequence[Decoded]) -> Callable[[], Encoded]:
            number = next(numbers)
            name = self.actors[(first + number) % len(self.actors)]
            if name not in actors:
                try:
                    actors[name] = ray.get_actor(name)
                except ValueError as error:
                    raise EncoderLost(f"encoder {self.spec.name!r} has ended") from error
            # Ray passes arrays on without copying them.
            plain = [np.asarray(item) if isinstance(item, Image.Image) else item for item in items]
            batch = f"batch {number + 1} of {what}"
            call = actors[name].encode.remote(plain, self.identity.digest, batch)
            return partial(_encoded, self.spec.name, call)

        return encode


def _encoded(name: str, call: Any) -> Encoded:
    try:
        encoded: Encoded = ray.get(call)
    except (EncoderMismatch, EncoderUnusable) as error:
        raise _cause(error) from None
    except RayError as error:
        raise EncoderLost(f"encoder {name!r} ended: {error}") from error
    return encoded


class EncoderActor:
    """A process with one encoder. `store_uri`: store of the records of encoders."""

    def __init__(self, spec: EncoderSpec, store_uri: str) -> None:
        self._spec, self._store_uri = spec, store_uri
        self._encoder: FrozenEncoder[Any] | None = None
        self._digest = ""

    def start(self) -> EncoderIdentity:
        """Load and check the encoder. Raises EncoderMismatch, EncoderUnusable."""
        return self._loaded().identity()

    def encode(self, items: Sequence[Any], digest: str, batch: str) -> Encoded:
        """Encode one batch, with images as arrays. `digest`: of the expected identity. `batch`: what it is, the same in each try.

        Raises EncoderMismatch, EncoderUnusable.
        """
        encoder = self._loaded()
        if self._digest != digest:
            raise EncoderMismatch(
                f"encoder {self._spec.name!r} was loaded again and is another one: the digest of its "
                f"identity is {self._digest}, expected {digest}"
            )
        with _counted(self._spec.name, batch):
            images = [
                Image.fromarray(each) if isinstance(each, np.ndarray) else each for each in items
            ]
            return encode_batch(encoder, images)

    def _loaded(self) -> FrozenEncoder[Any]:
        if self._encoder is None:
            encoder = load_encoder(self._spec)
            retry_unavailable(partial(check_or_record, encoder, open_store(self._store_uri)))
            self._encoder, self._digest = encoder, encoder.identity().digest
        return self._encoder


class EncoderProcess(EncoderActor):
    """The actor in a process of its own, which gives way to the encoders that answer queries."""

    def __init__(self, spec: EncoderSpec, store_uri: str) -> None:
        give_way_to_queries()
        release_memory_every(_RELEASE_SECONDS)
        super().__init__(spec, store_uri)


@contextmanager
def _counted(name: str, batch: str) -> Iterator[None]:
    """Count on this node's disk how often the process ended or failed while a batch was encoded, and refuse it then.

    To their senders, batches that waited in the process, perhaps of other owners, have failed in the same way.
    """
    path = Path(gettempdir()) / f"cmcl-batch-{hashlib.sha256(batch.encode()).hexdigest()}"
    ends = path.stat().st_size if path.exists() else 0
    if ends >= _MOST_ENDS:
        path.unlink(missing_ok=True)
        raise EncoderUnusable(
            f"encoder {name!r} ended or failed {ends} times while it encoded {batch}. An item may need more memory than "
            "its process or its GPU has: leave it out, or give the encoder a smaller max_batch or more memory"
        )
    with path.open("ab") as file:
        file.write(b".")
    yield
    path.unlink(missing_ok=True)


@dataclass
class _Pool:
    spec: EncoderSpec
    identity: EncoderIdentity
    actors: dict[str, Any] = field(default_factory=dict)
    leases: int = 0
    idle_since: float = 0.0


class EncoderPools:
    """The pools of one driver; their actors end with the driver. Thread-safe.

    `idle_seconds`: how long actors without a dataset stay. `start_seconds`: how long the cluster may take
    to start the first actor of a pool.
    """

    def __init__(
        self,
        store_uri: str,
        idle_seconds: float,
        start_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store_uri, self._clock = store_uri, clock
        self._idle_seconds, self._start_seconds = idle_seconds, start_seconds
        self._lock = threading.Lock()
        self._starting: dict[str, threading.Lock] = {}
        self._pools: dict[str, _Pool] = {}
        # Identity of each encoder that was leased, also after its pool has ended.
        self._identities: dict[str, EncoderIdentity] = {}
        # Drivers of one cluster may share a namespace.
        self._prefix, self._made = f"encoder-{secrets.token_hex(4)}", 0

    @contextmanager
    def lease(self, spec: EncoderSpec, units: int, check: Check) -> Iterator[LeasedEncoder]:
        """Lease an encoder with as many actors as the declaration permits, and at most one for each unit.

        `check` is called while the lease waits, with a sentence, and may raise. Raises EncoderUnusable,
        EncoderMismatch.
        """
        key = spec.model_dump_json()
        with self._lock:
            starting = self._starting.setdefault(key, threading.Lock())
        # Two datasets that need the same encoder start its actors once.
        while not starting.acquire(timeout=_POLL_SECONDS):
            check(f"waits until encoder {spec.name!r} has started for another dataset")
        try:
            pool = self._grown(key, spec, min(spec.actors, max(units, 1)), check)
            with self._lock:
                pool.leases += 1
                self._identities[key] = pool.identity
            leased = RayLease(spec, pool.identity, tuple(pool.actors))
        finally:
            starting.release()
        try:
            yield leased
        finally:
            with self._lock:
                pool.leases -= 1
                assert pool.leases >= 0
                pool.idle_since = self._clock()

    def identity_of(self, spec: EncoderSpec) -> EncoderIdentity | None:
        """Return the identity that the encoder had when it was leased last; None: it was not."""
        with self._lock:
            return self._identities.get(spec.model_dump_json())

    def end_idle(self) -> None:
        """End pools that have had no dataset for `idle_seconds`."""
        now = self._clock()
        with self._lock:
            idle = [
                key
                for key, pool in self._pools.items()
                if not pool.leases
                and now - pool.idle_since >= self._idle_seconds
                and not self._starting[key].locked()  # A dataset is about to lease it.
            ]
            ended = [self._pools.pop(key) for key in idle]
        for pool in ended:
            _end(pool.actors)
            logger.info("encoder %s: idle, ended", pool.spec.name)

    def _grown(self, key: str, spec: EncoderSpec, wanted: int, check: Check) -> _Pool:
        with self._lock:
            pool = self._pools.get(key)
        if pool is not None and not self._is_alive(pool, check):
            with self._lock:
                del self._pools[key]
            _end(pool.actors)
            pool = None
        if pool is None:
            began = self._clock()
            actors = {name: self._actor(spec, name) for name in self._names(wanted)}
            try:
                calls = [actor.start.remote() for actor in actors.values()]
                identity = _identity_of(spec, self._first(spec, calls, check))
                pool = _Pool(spec, identity, actors, idle_since=self._clock())
                seconds = 2 * (self._clock() - began) + _GRACE_SECONDS
                self._keep_started(pool, list(actors), seconds, check)
            except BaseException:
                _end(actors)
                raise
            with self._lock:
                self._pools[key] = pool
            logger.info(
                "encoder %s: %d of %d actors started in %.1f s, identity %s",
                *(spec.name, len(pool.actors), wanted),
                *(self._clock() - began, identity.digest[:12]),
            )
        elif len(pool.actors) < wanted:
            new = self._names(wanted - len(pool.actors))
            pool.actors |= {name: self._actor(spec, name) for name in new}
            self._keep_started(pool, new, _GRACE_SECONDS * 4, check)
        return pool

    def _is_alive(self, pool: _Pool, check: Check) -> bool:
        """Forget the actors that have ended, and return whether one of the others answers.

        Those of a pool that other datasets use are not asked: they would answer after their batches.
        """
        for name in [name for name in pool.actors if not _exists(name)]:
            del pool.actors[name]
        if pool.leases:
            return bool(pool.actors)
        calls = [actor.start.remote() for actor in pool.actors.values()]
        while calls:
            call = self._first(pool.spec, calls, check)
            if _has_started(call, pool.identity):
                return True
            calls.remove(call)
        return False

    def _names(self, count: int) -> list[str]:
        """Return new names. Names of actors that have ended are not reused."""
        with self._lock:
            first, self._made = self._made, self._made + count
        return [f"{self._prefix}-{number}" for number in range(first, first + count)]

    def _actor(self, spec: EncoderSpec, name: str) -> Any:
        options = ray.remote(EncoderProcess).options(
            name=name,
            num_cpus=spec.num_cpus,
            num_gpus=spec.num_gpus,
            resources=dict(spec.resources),
            max_restarts=_RESTARTS,
            max_task_retries=_TRIES_OF_A_BATCH - 1,
        )
        return options.remote(spec, self._store_uri)

    def _first(self, spec: EncoderSpec, calls: list[Any], check: Check) -> Any:
        """Return the first of these calls that is done. Raises EncoderUnusable after `start_seconds`."""
        reserved = f"num_cpus {spec.num_cpus:g}, num_gpus {spec.num_gpus:g}"
        if spec.resources:
            reserved += f", resources {dict(spec.resources)}"
        note = f"waits until encoder {spec.name!r} has started ({reserved})"
        done = self._done(calls, 1, self._start_seconds, check, note)
        if not done:
            raise EncoderUnusable(
                f"encoder {spec.name!r} did not start within {self._start_seconds:g} s: does the "
                f"cluster have a node for it ({reserved})?"
            )
        return done[0]

    def _keep_started(
        self, pool: _Pool, names: Sequence[str], seconds: float, check: Check
    ) -> None:
        """End those of these actors that have not started within `seconds`, or have another identity."""
        calls = {name: pool.actors[name].start.remote() for name in names}
        note = f"waits until more processes of encoder {pool.spec.name!r} have started"
        try:
            self._done(list(calls.values()), len(calls), seconds, check, note)
        finally:
            for name, call in calls.items():
                if not _has_started(call, pool.identity):
                    _end({name: pool.actors.pop(name)})

    def _done(
        self,
        calls: list[Any],
        count: int,
        seconds: float,
        check: Check,
        note: str,
    ) -> list[Any]:
        """Return `count` of these calls once they are done, or those that are done after `seconds`."""
        end = self._clock() + seconds
        while True:
            done: list[Any]
            done, _ = ray.wait(calls, num_returns=count, timeout=_POLL_SECONDS)
            if len(done) == count or self._clock() >= end:
                return done
            check(note)


def _identity_of(spec: EncoderSpec, call: Any) -> EncoderIdentity:
    try:
        identity: EncoderIdentity = ray.get(call)
    except (EncoderMismatch, EncoderUnusable, StorageUnavailable) as error:
        raise _cause(error) from None
    except RayError as error:
        raise EncoderUnusable(f"encoder {spec.name!r} does not start: {error}") from error
    return identity


def _cause(error: Exception) -> Exception:
    """Return the error of an actor: Ray raises a subclass whose message is the actor's traceback."""
    cause: Exception = getattr(error, "cause", error)
    return cause


def _has_started(call: Any, identity: EncoderIdentity) -> bool:
    try:
        started: EncoderIdentity = ray.get(call, timeout=0)
    except (GetTimeoutError, RayError, EncoderMismatch, EncoderUnusable, StorageUnavailable):
        return False
    return started.digest == identity.digest


def _exists(name: str) -> bool:
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


def _end(actors: dict[str, Any]) -> None:
    for actor in actors.values():
        ray.kill(actor)


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
        start: Any = ray.remote(function).options(**self._options)
        self._warming += [start.remote(self.file_memory) for _ in range(workers)]

    @property
    def is_warm(self) -> bool:
        """Whether the worker processes of `warm_up` have called their function."""
        waiting = self._warming
        if waiting:
            _, self._warming = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return not self._warming

    def run(self, function: Callable[..., R], *arguments: Any, check: Check) -> R:
        """See Cluster."""
        steps: list[tuple[Any, R | Exception]] = list(
            self.map(_called, function, [arguments], check=check)
        )
        ((_, result),) = steps
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
                            raise StorageUnavailable(
                                f"a worker process of the cluster was lost: {error}"
                            ) from error
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


def _called(function: Callable[..., R], arguments: tuple[Any, ...]) -> Iterator[R]:
    yield function(*arguments)


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


@dataclass
class _Tries(Generic[T]):
    """An item, and how often its process was lost."""

    item: T
    lost: int = 0


@contextmanager
def _cancelled_on_error(streams: Iterable[Any]) -> Iterator[None]:
    """Cancel the remaining streams if the block raises."""
    try:
        yield
    except BaseException:
        for stream in streams:
            ray.cancel(stream)
        raise
