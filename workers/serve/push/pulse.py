"""Many hits, few beats."""

import asyncio
from collections.abc import Callable

# So many looks at the store a second can be brought about from outside, and no more.
SECONDS = 0.02


class Pulse:
    """The first hit beats at once; those of the next moment beat together, when it is over.

    Used from one event loop.
    """

    def __init__(self, beat: Callable[[], None], seconds: float = SECONDS) -> None:
        self._beat = beat
        self._seconds = seconds
        self._rests = False
        self._was_hit = False

    def hit(self) -> None:
        """Beat, now or in a moment."""
        if self._rests:
            self._was_hit = True
            return
        self._rests = True
        asyncio.get_running_loop().call_later(self._seconds, self._go_on)
        self._beat()

    def _go_on(self) -> None:
        self._rests = False
        if self._was_hit:
            self._was_hit = False
            self.hit()
