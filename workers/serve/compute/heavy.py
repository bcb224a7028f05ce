"""One thread for what takes long, which says how long it has been at the same piece of work.

Many pieces may wait for it, so whether it moves cannot be told from one more that is put behind them.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class HeavyThread:
    """Used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # One, as torch has one thread: more would only take turns.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="heavy")
        self._clock = clock
        self._began: float | None = None

    @property
    def busy_seconds(self) -> float:
        """How long it has been at the piece of work that it does now; 0 where it does none."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Abandoned work is not begun; what has begun goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._timed, work)

    def close(self) -> None:
        """End the thread, once what runs in it is over."""
        self._executor.shutdown()

    def _timed(self, work: Callable[[], T]) -> T:
        self._began = self._clock()
        try:
            return work()
        finally:
            self._began = None
