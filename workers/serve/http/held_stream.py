"""An answer that is long: counted until its last byte is taken, and given up if nobody takes it."""

import asyncio
import logging
from collections.abc import Iterator

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from workers.serve.http.admission import Budget

logger = logging.getLogger(__name__)


class _Stalled(Exception):
    """Nobody took the next piece in time."""


class HeldStream(StreamingResponse):
    """What it streams stays in memory meanwhile, be it replaced or deleted everywhere else."""

    def __init__(
        self,
        pieces: Iterator[bytes],
        budget: Budget,
        key: str,
        stall_seconds: float,
        media_type: str,
        headers: dict[str, str],
    ) -> None:
        """Counts it from now on. Raises Overloaded."""
        super().__init__(pieces, media_type=media_type, headers=headers)
        self._budget = budget
        self._key = key
        self._stall_seconds = stall_seconds
        budget.take(key, 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await send(message)
            except TimeoutError as error:
                # Which is an OSError, that Starlette would take for the client's end.
                raise _Stalled from error

        try:
            await super().__call__(scope, receive, send_in_time)
        except _Stalled:
            # Without an end the server closes the connection, so nobody takes it for complete.
            logger.warning("a client took nothing for %g s; given up", self._stall_seconds)
        finally:
            self._budget.give_back(self._key, 1)
