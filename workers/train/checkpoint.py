"""Mid-dataset checkpoints in object storage, the last two of an attempt, and preemption notices.

State is equal on all ranks, so only rank 0 writes, in a thread, from a copy. An object is complete or
absent, and its name contains its digest. A checkpoint depends on the job's spec and on the number of
updates only, so it does no harm if an abandoned attempt keeps writing.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageError
from cmcl.contract.job import JobSpec
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from workers.train.distributed import World, broadcast_object
from workers.train.run import Checkpoints, Tensors

_KEPT = 2
# Between a preemption notice and the end of the machine there are some dozen seconds.
_URGENT_SECONDS = 3.0


class StoredCheckpoints(Checkpoints):
    """Checkpoints of one attempt, one every `seconds`, and more often while `is_urgent`.

    A context manager, which waits for the last write.
    """

    def __init__(
        self,
        store: ObjectStore,
        job: JobSpec,
        here: World,
        seconds: float,
        is_urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._job, self._here = store, job, here
        self._seconds, self._is_urgent = seconds, is_urgent
        self._start: Tensors = {}
        self._taken_at = time.monotonic()
        self._writer: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.join()

    def newest(self, here: World) -> Tensors | None:
        """The attempt's newest checkpoint, else the one that its spec names.

        Damaged and missing ones are skipped. Raises StorageUnavailable after retries.
        """
        key = broadcast_object(self._newest_key, here)
        return None if key is None else _read(self._store, key)

    def set_start(self, start: Tensors) -> None:
        """See `Checkpoints`."""
        if self._here.is_leader:
            self._start = {name: _copied(tensor) for name, tensor in start.items()}

    def save_if_due(self, updates: int, state: Callable[[], Tensors]) -> None:
        """See `Checkpoints`. Saved by rank 0 if it is due, unless the last one is still being written."""
        if not self._here.is_leader or not self._is_due():
            return
        if self._writer is not None and self._writer.is_alive():
            return
        taken = {name: _copied(tensor) for name, tensor in state().items()}
        assert not taken.keys() & self._start.keys(), "one would replace the other"
        arguments = [updates, {**self._start, **taken}]
        self._writer = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._writer.start()
        self._taken_at = time.monotonic()

    def _is_due(self) -> bool:
        age = time.monotonic() - self._taken_at
        return age >= self._seconds or (age >= _URGENT_SECONDS and self._is_urgent())

    def _newest_key(self) -> str | None:
        own = retry_unavailable(lambda: sorted(self._store.keys(self._prefix), reverse=True))
        known = [self._job.resume_from] if self._job.resume_from else []
        return next((key for key in [*own, *known] if self._is_whole(key)), None)

    def _is_whole(self, key: str) -> bool:
        try:
            _read(self._store, key)
        except (ObjectNotFound, InvalidVersion) as error:
            print(f"a checkpoint cannot be used: {error}", flush=True)
            return False
        return True

    def _write(self, updates: int, tensors: Tensors) -> None:
        """Runs in a thread. If the store fails, this checkpoint is lost and training continues."""
        try:
            data = save(dict(tensors))
            name = partial(layout.run_checkpoint, self._job.job, self._job.attempt, updates)
            key = name(_digest(name(""), data))
            self._store.put(key, data)
            for old in sorted(self._store.keys(self._prefix))[:-_KEPT]:
                self._store.delete(old)
        except StorageError as error:
            print(f"the checkpoint after {updates} updates was not written: {error}", flush=True)

    @property
    def _prefix(self) -> str:
        return layout.run_checkpoints(self._job.job, self._job.attempt)


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the host: training continues with the original."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _digest(key: str, data: bytes) -> str:
    """Digest of the bytes and of the key before it: a checkpoint of another job is none of this one."""
    return hashlib.sha256(f"{key.rpartition('-')[0]}\n".encode() + data).hexdigest()


def _read(store: ObjectStore, key: str) -> Tensors:
    """Raises ObjectNotFound, and InvalidVersion if its digest is not the one in its name."""
    data = retry_unavailable(lambda: store.read(key))
    if _digest(key, data) != key.rpartition("-")[2].removesuffix(".safetensors"):
        raise InvalidVersion(f"{store.uri}/{key} does not have the SHA-256 of its name")
    try:
        tensors: Tensors = load(data)
    except SafetensorError as error:
        raise InvalidVersion(f"{store.uri}/{key} cannot be read: {error}") from error
    return tensors


# --- Preemption notices: a node is about to be taken away, so a checkpoint is due at once -------
#
# Ray Train notifies its ranks, but its call (`ray.train.get_preemption_info`) waits until every rank has
# called it as often. So a thread of each rank calls it, and the training loop reads a flag.

# Ray's own watcher polls the cluster at this interval; notices are given half a minute ahead or more.
_POLL_SECONDS = 1.0

_noticed = threading.Event()


def preemption_noticed() -> bool:
    """Whether there was a notice. It holds for the life of the process."""
    return _noticed.is_set()


def watch_for_preemption(
    poll: Callable[[], object | None], seconds: float = _POLL_SECONDS
) -> threading.Thread:
    """Poll in a thread until the result is not None, which is the notice."""
    thread = threading.Thread(target=_poll, args=[poll, seconds], name="preemption", daemon=True)
    thread.start()
    return thread


def _poll(poll: Callable[[], object | None], seconds: float) -> None:
    try:
        while (notice := poll()) is None:
            time.sleep(seconds)
    except Exception as error:  # noqa: BLE001
        # The call goes through an actor of Ray Train, which ends before its ranks do. Without notices a
        # preemption costs the updates since the last regular checkpoint.
        print(f"preemption notices are no longer received: {error}", flush=True)
        return
    print(f"preemption notice: {notice}", flush=True)
    _noticed.set()
