"""When to ask once more, and after how long."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from cmcl.errors import PASSING, CmclError, retry_after

_CONFLICT = 409
_PROXYS = frozenset({404, 500})


@dataclass(frozen=True)
class Retries:
    """How often one request is sent, and the pauses in between: they double, and vary by a half.

    Asking again is safe: a POST carries an Idempotency-Key, made once per call, and whatever else
    is sent again does the same when it is done twice. `attempts=1` sends everything once.
    `longest_pause` (seconds) also bounds what the server may ask for by Retry-After.
    """

    attempts: int = 4
    first_pause: float = 0.25
    longest_pause: float = 30.0
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        """Raises CmclError."""
        if self.attempts < 1 or self.first_pause < 0 or self.longest_pause < 0:
            raise CmclError(f"{self}: one attempt at least, and no pause below 0 seconds")

    def pause(self, failed: int) -> float:
        """Seconds to wait after so many failures in a row, the first of which is 1."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(failed - 1, 30))
        return longest * (0.5 + 0.5 * self.jitter())

    def pause_after(self, response: httpx.Response, failed: int) -> float | None:
        """Seconds until the request may succeed; None where asking again is of no use."""
        asked = retry_after(response)
        status = response.status_code
        # 409 with a time: the same request is being carried out just now.
        passing = status in PASSING or _is_of_a_proxy(response)
        if not passing and not (status == _CONFLICT and asked is not None):
            return None
        if failed >= self.attempts or (asked or 0) > self.longest_pause:
            return None
        return max(self.pause(failed), asked or 0.0)


def _is_of_a_proxy(response: httpx.Response) -> bool:
    """Whether a proxy answered for a server that is away: Ray's HAProxy says 500 then, or 404 while
    it starts, in plain text. Our own servers say everything in JSON."""
    media_type = str(response.headers.get("content-type", ""))
    return response.status_code in _PROXYS and media_type.startswith("text/plain")
