"""Mid-dataset checkpoints in object storage: complete or absent, the last two of an attempt kept.

State is alike on all ranks, so the leading one alone writes, in a thread, from a copy. An object is
there as a whole or not at all, and its name holds its digest. Whatever wrote it, a checkpoint is a
true beginning of the one run that the job's spec describes, so it does no harm if an attempt that
was given up goes on writing.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Self

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cmcl.contract.errors import InvalidVersion, ObjectNotFound, StorageError
from cmcl.contract.job import JobSpec
from workers.storage import layout
from workers.storage.patience import patiently
from workers.storage.port import ObjectStore
from workers.train.distributed import World, from_leader
from workers.train.run import Checkpoints, Tensors

_KEPT = 2
# From a notice that this machine will go to its end there are some dozen seconds.
_URGENT_SECONDS = 3.0


class StoredCheckpoints(Checkpoints):
    """Those of one attempt, one each `seconds`; more often while `is_urgent`.

    Within `with`; the last one is waited for in the end.
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
        """The attempt's own newest one, else the one that its spec names; one that is damaged or
        gone is passed over. Raises StorageUnavailable after some patience."""
        key = from_leader(self._newest_key, here)
        return None if key is None else _read(self._store, key)

    def begin(self, start: Tensors) -> None:
        """See the port."""
        if self._here.leads:
            self._start = {name: _copied(tensor) for name, tensor in start.items()}

    def offer(self, updates: int, state: Callable[[], Tensors]) -> None:
        """See the port. Taken by the leading rank when it is time, unless it still writes one."""
        if not self._here.leads or not self._is_due():
            return
        if self._writer is not None and self._writer.is_alive():
            return
        taken = {name: _copied(tensor) for name, tensor in state().items()}
        arguments = [updates, {**self._start, **taken}]
        self._writer = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._writer.start()
        self._taken_at = time.monotonic()

    def _is_due(self) -> bool:
        age = time.monotonic() - self._taken_at
        return age >= self._seconds or (age >= _URGENT_SECONDS and self._is_urgent())

    def _newest_key(self) -> str | None:
        own = patiently(lambda: sorted(self._store.keys(self._prefix), reverse=True))
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
        """In a thread. A store that fails costs this checkpoint, and not the training."""
        try:
            data = save(dict(tensors))
            digest = hashlib.sha256(data).hexdigest()
            key = layout.run_checkpoint(self._job.job, self._job.attempt, updates, digest)
            self._store.put(key, data)
            for old in sorted(self._store.keys(self._prefix))[:-_KEPT]:
                self._store.delete(old)
        except StorageError as error:
            print(f"the checkpoint after {updates} updates was not written: {error}", flush=True)

    @property
    def _prefix(self) -> str:
        return layout.run_checkpoints(self._job.job, self._job.attempt)


def _copied(tensor: Tensor) -> Tensor:
    """On the host, of its own: training goes on in the original."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _read(store: ObjectStore, key: str) -> Tensors:
    """Raises ObjectNotFound; InvalidVersion where it is not what its name promises."""
    data = patiently(lambda: store.read(key))
    digest = key.rpartition("-")[2].removesuffix(".safetensors")
    if hashlib.sha256(data).hexdigest() != digest:
        raise InvalidVersion(f"{store.uri}/{key} is not what its name promises (SHA-256)")
    try:
        tensors: Tensors = load(data)
    except SafetensorError as error:
        raise InvalidVersion(f"{store.uri}/{key} cannot be read: {error}") from error
    return tensors
