"""The thread that follows `live.json` of every model and swaps versions beside the traffic.

Nothing that it meets may end it: a store that does not answer, a damaged version or a bug of ours
leaves the old version answering, is logged once, counted, and tried again later.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from workers.contract.errors import WorkerError
from workers.contract.modality import NAME_PATTERN
from workers.contract.version import LivePointer
from workers.serve.metrics import ServeMetrics
from workers.serve.versions.live import LiveModel, LiveVersions
from workers.serve.versions.loading import ServedVersion, load_version
from workers.storage.port import ObjectStore
from workers.storage.versions import read_live

logger = logging.getLogger(__name__)

_MODELS = "models/"
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 15.0


@dataclass(frozen=True)
class _Refusal:
    """A generation that could not be used, and when to try it again."""

    generation: int
    failures: int
    retry_at: float


class Follower:
    """Keeps `live` equal to what the pointers in `store` say, as far as that can be verified."""

    def __init__(
        self,
        store: ObjectStore,
        live: LiveVersions,
        metrics: ServeMetrics,
        poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._live = live
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._refusals: dict[str, _Refusal] = {}
        self._complaints: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Follow in the background."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until it is gone."""
        self._stopping.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether somebody is following."""
        return self._thread.is_alive()

    def look(self) -> None:
        """Look at every model once. Raises StorageUnavailable if they cannot even be listed."""
        models = [name for name in self._store.folders(_MODELS) if re.fullmatch(NAME_PATTERN, name)]
        for model in models:
            try:
                self._follow(model)
            except WorkerError as error:
                self._complain(f"live.json of {model}", error)
            else:
                self._complaints.pop(f"live.json of {model}", None)
        self._live.looked(models)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except WorkerError as error:
                self._complain("the store", error)
            except Exception:
                # A bug, but one that must not freeze this replica on today's version for ever.
                logger.exception("a look at the store failed")
            else:
                self._complaints.pop("the store", None)
            self._stopping.wait(self._poll_seconds)

    def _follow(self, model: str) -> None:
        pointer = read_live(self._store, model)
        if pointer is None or not self._is_due(model, pointer):
            return
        try:
            version = self._version(model, pointer)
        except WorkerError as error:
            self._refuse(model, pointer, error)
        else:
            self._swap(model, LiveModel(pointer.generation, version))

    def _is_due(self, model: str, pointer: LivePointer) -> bool:
        """Whether the pointer is newer than what answers, and not to be left alone for a while."""
        live = self._live.get(model)
        if live is not None and pointer.generation <= live.generation:
            return False
        refusal = self._refusals.get(model)
        if refusal is None or refusal.generation != pointer.generation:
            return True
        return self._clock() >= refusal.retry_at

    def _version(self, model: str, pointer: LivePointer) -> ServedVersion:
        live = self._live.get(model)
        if live is not None and live.version.number == pointer.version:
            return live.version  # versions never change, so there is nothing to load
        return load_version(self._store, model, pointer.version)

    def _swap(self, model: str, live: LiveModel) -> None:
        self._live.replace(model, live)
        self._refusals.pop(model, None)
        self._metrics.swapped(model, live.version.number)
        logger.info("%s answers (generation %d)", live.version.label, live.generation)

    def _refuse(self, model: str, pointer: LivePointer, error: WorkerError) -> None:
        before = self._refusals.get(model)
        same = before is not None and before.generation == pointer.generation
        failures = before.failures + 1 if before is not None and same else 1
        # The exponent is bounded too: 2.0 ** 1024 overflows, and a week of failures gets there.
        delay = min(_FIRST_DELAY_SECONDS * 2.0 ** min(failures, 16), _LONGEST_DELAY_SECONDS)
        self._refusals[model] = _Refusal(pointer.generation, failures, self._clock() + delay)
        self._metrics.refused(model)
        logger.warning(
            "%s@%d (generation %d) is refused, try %d, again in %.1f s: %s",
            *(model, pointer.version, pointer.generation, failures, delay, error),
        )

    def _complain(self, about: str, error: WorkerError) -> None:
        """Log once and not with every look: a store that is down for an hour fills no disk."""
        if self._complaints.get(about) != str(error):
            self._complaints[about] = str(error)
            logger.warning("%s cannot be read, what answers goes on: %s", about, error)
