"""Time, as a dependency: tests pass their own."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
Seconds = Callable[[], float]


def utc_now() -> datetime:
    """The current time in UTC, timezone-aware."""
    return datetime.now(UTC)


def steady(clock: Clock) -> Seconds:
    """Seconds of a clock that never go back: an adjusted clock must not delay what is queued."""
    last, behind = clock().timestamp(), 0.0

    def seconds() -> float:
        nonlocal last, behind
        now = clock().timestamp()
        if now < last:
            behind += last - now
        last = now
        return now + behind

    return seconds
