"""What time it is: passed to whoever asks, so that tests decide."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, with its time zone."""
    return datetime.now(UTC)
