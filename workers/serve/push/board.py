"""What the actor does, without Ray: it counts announcements, and whoever waits is told the count."""

import asyncio

from workers.serve.push.pulse import Pulse

# A call that never ended would be a listener that nobody knows to be gone.
WAIT_SECONDS = 20.0


class Board:
    """For any number of listeners; used from one event loop."""

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        self._count = 0
        self._news = asyncio.Event()
        self._pulse = Pulse(self._tell)

    def announce(self) -> None:
        """Tell everybody who waits."""
        self._pulse.hit()

    async def wait(self, seen: int) -> int:
        """The count, once it is not `seen`, or after `wait_seconds`."""
        if self._count == seen:
            try:
                await asyncio.wait_for(self._news.wait(), self._wait_seconds)
            except TimeoutError:
                pass  # Nothing was announced, which is an answer.
        return self._count

    def _tell(self) -> None:
        self._count += 1
        self._news.set()
        self._news = asyncio.Event()
