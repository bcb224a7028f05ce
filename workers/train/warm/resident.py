"""The actor that outlives single jobs: it has the desk, and keeps one Ray Train run going.

When it dies, its ranks die with it, and whoever asked it trains without it.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from workers.train.warm.desk import Answer, Assignment, Attempt, Desk, Retire

NAME, NAMESPACE = "cmcl-resident", "cmcl"
# The longest that one call waits for news; callers ask again.
_ASK_SECONDS = 1.0
_RANK_SECONDS = 10.0
_LEAVING_SECONDS = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What a group of ranks is made of; another setup is another group."""

    code: str
    ranks: int
    gpus_per_rank: float


class Resident:
    """A Ray actor. Its coroutines run in one thread, the Ray Train run has another."""

    def __init__(self, setup: Setup, store_uri: str) -> None:
        self._setup, self._store_uri = setup, store_uri
        self._desk = Desk(time.monotonic)
        self._news = asyncio.Event()
        self._is_leaving = False
        threading.Thread(target=self._keep_group, daemon=True, name="group").start()

    async def ask(self, attempt: Attempt, setup: Setup) -> Answer:
        """What became of the attempt; answers within a second or so."""
        if setup != self._setup:
            self._is_leaving = True
            self._leave_if_idle()
            return Answer("elsewhere")
        first = self._desk.ask(attempt)
        if first.state == "working":
            self._tell()

        def changed() -> Answer | None:
            now = self._desk.ask(attempt)
            return None if now == first else now

        if first.is_final:
            return first
        return await self._until(changed, _ASK_SECONDS) or first

    async def is_there(self) -> bool:
        """Answers as soon as the actor lives, which may be long before its ranks do."""
        return True

    async def withdraw(self, attempt: Attempt) -> None:
        """Nobody wants it any more."""
        self._desk.withdraw(attempt)
        self._tell()

    async def group_started(self) -> None:
        """Told by the leading rank of a new group."""
        self._desk.group_started()
        self._tell()

    async def next(self, after: int) -> Assignment | Retire | None:
        """What a rank that has done number `after` is to do; None: ask again."""
        return await self._until(lambda: self._desk.next(after), _RANK_SECONDS)

    async def finished(self, number: int) -> None:
        """Told by the leading rank."""
        self._desk.finished(number)
        self._tell()

    async def refused(self, number: int, words: str) -> None:
        """Told by a rank: it would fail alike again."""
        self._desk.refused(number, words)
        self._tell()

    async def stumbled(self, number: int, words: str) -> None:
        """Told by a rank, whose group then ends."""
        self._desk.stumbled(number, words)

    async def is_abandoned(self) -> bool:
        """Whether the ranks work on what nobody wants; answers at once if so."""
        return bool(await self._until(self._desk.is_abandoned, _RANK_SECONDS))

    async def _until(self, look: Callable[[], T | None], seconds: float) -> T | None:
        """What `look` finds, as soon as it finds anything; else None."""
        deadline = time.monotonic() + seconds
        while not (found := look()):
            rest = deadline - time.monotonic()
            if rest <= 0:
                return None
            try:
                # Silence is no news: somebody must look now and then.
                await asyncio.wait_for(self._news.wait(), min(rest, _ASK_SECONDS))
            except TimeoutError:
                pass
        return found

    def _tell(self) -> None:
        """Wake everybody who waits for news."""
        self._news.set()
        self._news = asyncio.Event()
        self._leave_if_idle()

    def _leave_if_idle(self) -> None:
        if self._is_leaving and self._desk.is_empty:
            # Later, so that the answers that are under way arrive.
            asyncio.get_running_loop().call_later(_LEAVING_SECONDS, os._exit, 0)

    def _keep_group(self) -> None:
        """One group after another, until something is wrong: then this process ends."""
        try:
            # Torch and Ray Train take seconds to import; those who only ask need neither.
            from workers.train.ray_run import run_resident_group

            while True:
                run_resident_group(self._store_uri, self._setup.ranks, self._setup.gpus_per_rank)
        finally:
            os._exit(1)
