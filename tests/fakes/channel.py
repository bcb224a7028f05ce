"""A channel between replicas of one process, which can be lost and found again."""

import threading

from workers.serve.announcements import ChannelLost


class FakeChannel:
    """See the port, `workers.serve.announcements.Channel`."""

    def __init__(self, wait_seconds: float = 0.05) -> None:
        self.announced: list[str] = []
        self.is_lost = False
        self._wait_seconds = wait_seconds
        self._count = 0
        self._news = threading.Condition()

    def announce(self, model: str) -> None:
        self.announced.append(model)
        if not self.is_lost:
            self.tell()

    def wait(self, seen: int) -> int:
        with self._news:
            self._news.wait_for(lambda: self.is_lost or self._count != seen, self._wait_seconds)
            if self.is_lost:
                raise ChannelLost("the actor died (on purpose)")
            return self._count

    def tell(self) -> None:
        """Publish an announcement."""
        with self._news:
            self._count += 1
            self._news.notify_all()

    def lose(self) -> None:
        """Every listener, now and later, gets the end."""
        with self._news:
            self.is_lost = True
            self._news.notify_all()
