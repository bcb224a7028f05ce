"""The first look of a replica: before, an unknown model may just not be seen yet."""

import logging
import threading
from collections.abc import Callable, Sequence

from cmcl.contract.errors import WorkerError
from workers.serve.versions.live import LiveVersions

logger = logging.getLogger(__name__)


class FirstLook:
    """Over when every model of the first listing was tried: loaded, refused or found without one."""

    def __init__(self, live: LiveVersions) -> None:
        self._live = live
        self._left: set[str] | None = None
        self._lock = threading.Lock()

    def failed(self, error: WorkerError) -> None:
        """The store could not be listed."""
        with self._lock:
            if self._left is None:
                self._live.not_ready(f"this replica has not seen the store yet: {error}")

    def listed(self, models: Sequence[str]) -> None:
        """These models are there."""
        with self._lock:
            if self._left is None:
                self._left = set(models)
            self._check()

    def tried(self, model: str) -> None:
        """What its pointer names was taken or refused, or there is none."""
        with self._lock:
            if self._left is not None:
                self._left.discard(model)
                self._check()

    def _check(self) -> None:
        if not self._left:
            self._live.become_ready()
        else:
            self._live.not_ready(f"models whose live version was not tried yet: {len(self._left)}")


def wait_for_first_look(
    live: LiveVersions, seconds: float, others_answer: Callable[[], bool]
) -> None:
    """Hold a new replica back until it has seen the store: it would answer with 503 before.

    For `seconds`; and for as long as others answer in its place, so that neither a restart nor an
    update puts a replica that knows nothing where one was that answers. Where nobody answers it goes
    on without: requests and `/readyz` are told what it waits for, and it looks all the time.
    """
    while not live.wait_ready(seconds):
        if not others_answer():
            logger.warning("requests are taken and answered with 503: %s", live.waits_for)
            return
        logger.warning("others answer, this replica waits: %s", live.waits_for)
