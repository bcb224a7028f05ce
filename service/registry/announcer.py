"""Tells the embeddings endpoint at once that another version answers.

Only for speed: replicas look at object storage by themselves. So nothing is repeated, nothing waits
for an answer but the thread that sends, and an endpoint that failed is left alone for a while.
"""

import logging
import threading
import time
from collections.abc import Callable

import httpx

from cmcl.contract.version import ANNOUNCEMENTS, Announcement, LivePointer

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 2.0
_PAUSE_SECONDS = 5.0
# How soon the thread sees that the service ends.
_STOP_SECONDS = 1.0

# What came of an announcement: "delivered", "failed" or "skipped".
Observe = Callable[[str], None]


class Announcer:
    """`tell` is for everybody and never waits; `run` sends, in a thread of its own."""

    def __init__(
        self, url: str, observe: Observe, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        """Without a `url` nobody is told."""
        self._url = url.rstrip("/")
        self._observe = observe
        self._seconds = seconds
        self._waiting: dict[str, Announcement] = {}
        self._lock = threading.Lock()
        self._rung = threading.Event()
        self._left_alone_until = float("-inf")

    def tell(self, model: str, pointer: LivePointer) -> None:
        """The model's live.json is this one now; of several that wait, the last one is sent."""
        if not self._url:
            return
        news = Announcement(model=model, generation=pointer.generation, revision=pointer.revision)
        with self._lock:
            self._waiting[model] = news
            self._rung.set()

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        # No proxy from the environment: those are for the internet, and this address is ours.
        with httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            while not stop.is_set():
                self._rung.wait(_STOP_SECONDS)
                self.send(client)

    def send(self, client: httpx.Client) -> None:
        """Whatever waits."""
        with self._lock:
            self._rung.clear()
            waiting, self._waiting = self._waiting, {}
        for news in waiting.values():
            if self._seconds() < self._left_alone_until:
                self._observe("skipped")
            else:
                self._observe("delivered" if self._post(client, news) else "failed")

    def _post(self, client: httpx.Client, news: Announcement) -> bool:
        try:
            client.post(f"{self._url}{ANNOUNCEMENTS}", json=news.model_dump()).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._left_alone_until = self._seconds() + _PAUSE_SECONDS
            logger.warning("%s was not told of %s: %s", self._url, news.model, error)
            return False
        return True
