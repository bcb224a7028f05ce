"""How the bodies of requests may arrive, at the control plane and at the embeddings endpoint.

`Pace` bounds how slowly, and `HeldFlowControl` holds the connections whose received data waits to be parsed.
"""

import asyncio
from dataclasses import dataclass

from uvicorn.protocols.http.flow_control import FlowControl

# A client that is slower than this over a whole body would hold its slot for hours.
LEAST_BYTES_PER_SECOND = 64 << 10


class HeldFlowControl(FlowControl):
    """Reads while uvicorn wants more and the connection is not held."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_held = False

    def hold(self) -> None:
        """Pause reading until `release`."""
        if not self._is_held:
            self._is_held = True
            if not self.read_paused:
                self._transport.pause_reading()

    def release(self) -> None:
        """Resume reading, if uvicorn wants more."""
        if self._is_held:
            self._is_held = False
            if not self.read_paused:
                self._transport.resume_reading()

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            if not self._is_held:
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            if not self._is_held:
                self._transport.resume_reading()


@dataclass(frozen=True)
class Pace:
    """Longest pause between two pieces, and least rate over the whole body."""

    idle_timeout_seconds: float
    bytes_per_second: int = LEAST_BYTES_PER_SECOND

    def seconds_left(self, waited: float, arrived: int) -> float:
        """For the next piece, after so many seconds of waiting brought so many bytes; can be negative."""
        behind = waited - arrived / self.bytes_per_second
        return self.idle_timeout_seconds - max(behind, 0.0)
