"""Encoders of preparation: Ray actors that outlive a dataset, a pool for each declaration.

An actor loads its encoder once, and compares it with the record in the store. Each batch names the digest of the
expected identity: an actor that restarted with another model refuses it.

Shapes: B items of a batch, F width of the feature.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.exceptions import GetTimeoutError, RayError

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import StorageUnavailable
from cmcl.memory import release_memory_every
from cmcl.storage.object_store import retry_unavailable
from cmcl.storage.uris import open_store
from workers.encoders.identity import check_or_record
from workers.encoders.media import Decoded
from workers.encoders.port import EncoderMismatch, EncoderUnusable, FrozenEncoder
from workers.encoders.registry import load_encoder
from workers.prepare.encoding import Encoded, EncoderLost, EncoderPort, LeasedEncoder, encode_batch
from workers.sandbox.limits import give_way_to_queries

# An actor that dies is restarted, and its batch is sent a second time. Both numbers are finite: a batch may be the
# cause.
_RESTARTS = 20
_TRIES_OF_A_BATCH = 2
# How much longer than the first actor of a pool the other actors may take to start.
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.2
# An encoder keeps what a batch has freed for the next one, also when there is none.
_RELEASE_SECONDS = 20.0
# A batch that was encoded when the process ended may be the cause, or a node that is short of memory.
_MOST_ENDS = 3


class RayLease(LeasedEncoder):
    """An encoder whose processes are actors of Ray."""

    def connect(self, first: int, what: str) -> EncoderPort:
        """See LeasedEncoder."""
        return RayEncoder(self, first, what)


class RayEncoder:
    """Sends batches to the actors of a pool in turn."""

    def __init__(self, leased: LeasedEncoder, first: int, what: str) -> None:
        self._leased, self._next, self._what = leased, first, what
        self._sent = 0
        self._actors: dict[str, Any] = {}

    def submit(self, items: Sequence[Decoded]) -> Any:
        """See EncoderPort."""
        names = self._leased.actors
        name = names[self._next % len(names)]
        self._next += 1
        self._sent += 1
        if name not in self._actors:
            try:
                self._actors[name] = ray.get_actor(name)
            except ValueError as error:
                raise EncoderLost(f"encoder {self._leased.spec.name!r} has ended") from error
        return self._actors[name].encode.remote(
            # Ray passes arrays on without copying them.
            [np.asarray(item) if isinstance(item, Image.Image) else item for item in items],
            self._leased.identity.digest,
            f"batch {self._sent} of {self._what}",
        )

    def wait(self, pending: Any) -> Encoded:
        """See EncoderPort."""
        try:
            encoded: Encoded = ray.get(pending)
        except (EncoderMismatch, EncoderUnusable) as error:
            # Ray raises a subclass whose message is the traceback of the actor.
            raise getattr(error, "cause", error) from None
        except RayError as error:
            raise EncoderLost(f"encoder {self._leased.spec.name!r} ended: {error}") from error
        return encoded


@dataclass(frozen=True)
class Started:
    """The identity of the encoder that an actor loaded, or why it cannot be used.

    `mismatch`: the encoder differs from its record.
    """

    identity: EncoderIdentity | None = None
    error: str = ""
    mismatch: bool = False


class EncoderActor:
    """A process with one encoder. `store_uri`: store of the records of encoders."""

    def __init__(self, spec: EncoderSpec, store_uri: str) -> None:
        self._spec, self._store_uri = spec, store_uri
        self._encoder: FrozenEncoder[Any] | None = None
        self._digest = ""

    def start(self) -> Started:
        """Load and check the encoder."""
        try:
            return Started(self._loaded().identity())
        except (EncoderUnusable, EncoderMismatch) as error:
            return Started(error=str(error), mismatch=isinstance(error, EncoderMismatch))

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
    def lease(
        self, spec: EncoderSpec, units: int, check: Callable[[str], None]
    ) -> Iterator[LeasedEncoder]:
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
            print(f"encoder {pool.spec.name}: idle, ended", flush=True)

    def _grown(
        self, key: str, spec: EncoderSpec, wanted: int, check: Callable[[str], None]
    ) -> _Pool:
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
            print(
                f"encoder {spec.name}: {len(pool.actors)} of {wanted} actors started in "
                f"{self._clock() - began:.1f} s, identity {identity.digest[:12]}",
                flush=True,
            )
        elif len(pool.actors) < wanted:
            new = self._names(wanted - len(pool.actors))
            pool.actors |= {name: self._actor(spec, name) for name in new}
            self._keep_started(pool, new, _GRACE_SECONDS * 4, check)
        return pool

    def _is_alive(self, pool: _Pool, check: Callable[[str], None]) -> bool:
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

    def _first(self, spec: EncoderSpec, calls: list[Any], check: Callable[[str], None]) -> Any:
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
        self, pool: _Pool, names: Sequence[str], seconds: float, check: Callable[[str], None]
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
        check: Callable[[str], None],
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
        started: Started = ray.get(call)
    except StorageUnavailable:
        raise
    except RayError as error:
        raise EncoderUnusable(f"encoder {spec.name!r} does not start: {error}") from error
    if started.identity is not None:
        return started.identity
    raise (EncoderMismatch if started.mismatch else EncoderUnusable)(started.error)


def _has_started(call: Any, identity: EncoderIdentity) -> bool:
    try:
        started: Started = ray.get(call, timeout=0)
    except (GetTimeoutError, RayError):
        return False
    return started.identity is not None and started.identity.digest == identity.digest


def _exists(name: str) -> bool:
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


def _end(actors: dict[str, Any]) -> None:
    for actor in actors.values():
        ray.kill(actor)
