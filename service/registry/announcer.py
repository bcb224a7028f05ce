"""Announces a changed live pointer to the embeddings endpoint.

It saves latency only: replicas poll object storage. So nothing is retried, only the sending thread waits for a
response, and an endpoint that failed gets no announcement for some seconds.
"""

import logging
import threading
import time
from collections.abc import Callable

import httpx

from cmcl.contract.version import ANNOUNCEMENTS, Announcement, LivePointer
from service.loops import PeriodicLoop

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 2.0
_PAUSE_AFTER_FAILURE_SECONDS = 5.0
# Upper bound on how long the loop takes to see that the service stops.
_WAIT_SECONDS = 1.0

# Called with the outcome of an announcement: "delivered", "failed" or "skipped".
Observe = Callable[[str], None]


class Announcer(PeriodicLoop):
    """`announce` never waits and may be called from any thread; the loop sends."""

    name = "announcer"
    pause_seconds = 0.0

    def __init__(
        self, url: str, observe: Observe, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        """With an empty `url` announcements are dropped."""
        super().__init__()
        self._url = url.rstrip("/")
        self._observe = observe
        self._now = seconds
        self._waiting: dict[str, Announcement] = {}
        self._lock = threading.Lock()
        self._signal = threading.Event()
        self._paused_until = float("-inf")

    def announce(self, model: str, pointer: LivePointer) -> None:
        """Queue an announcement; of several for one model that wait, the last one is sent."""
        if not self._url:
            return
        announcement = Announcement(
            model=model, generation=pointer.generation, revision=pointer.revision
        )
        with self._lock:
            self._waiting[model] = announcement
            self._signal.set()

    def step(self, stop: threading.Event) -> float:
        """See PeriodicLoop."""
        if self._signal.wait(_WAIT_SECONDS):
            # Proxies of the environment are for the internet, and this address is internal.
            with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                self.send(client)
        return self.pause_seconds

    def send(self, client: httpx.Client) -> None:
        """Send what is queued."""
        with self._lock:
            self._signal.clear()
            waiting, self._waiting = self._waiting, {}
        for announcement in waiting.values():
            if self._now() < self._paused_until:
                self._observe("skipped")
            else:
                self._observe("delivered" if self._post(client, announcement) else "failed")

    def _post(self, client: httpx.Client, announcement: Announcement) -> bool:
        url = f"{self._url}{ANNOUNCEMENTS}"
        try:
            client.post(url, json=announcement.model_dump()).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._paused_until = self._now() + _PAUSE_AFTER_FAILURE_SECONDS
            logger.warning(
                "announcement of model %s to %s failed: %s", announcement.model, self._url, error
            )
            return False
        return True
