"""When a message that was not taken is sent again: over about three days, then never.

The steps are those that the Standard Webhooks specification recommends.
"""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_MINUTE, _HOUR = 60.0, 3600.0
# Seconds after the first, the second... attempt that failed.
STEPS = (
    5.0,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * _HOUR,
    5 * _HOUR,
    10 * _HOUR,
    14 * _HOUR,
    20 * _HOUR,
    24 * _HOUR,
)
MOST_ATTEMPTS = len(STEPS) + 1
# Many messages that failed together must not come back together.
_JITTER = 0.2
_LONGEST_RETRY_AFTER = 24 * _HOUR
# One message fails, and all others of that webhook wait so long at most: its receiver is down more
# often than the message is bad.
_LONGEST_REST = 5 * _MINUTE

Chance = Callable[[], float]


def seconds_to_next(
    attempts: int, retry_after: float | None = None, chance: Chance = random.random
) -> float | None:
    """From the end of the `attempts`-th attempt to the next one; None after the last.

    `retry_after` is what the receiver asked for: it is given at least that, up to a day.
    """
    if attempts >= MOST_ATTEMPTS:
        return None
    seconds = STEPS[attempts - 1] * (1 + _JITTER * chance())
    return max(seconds, min(retry_after or 0.0, _LONGEST_RETRY_AFTER))


def seconds_to_rest(seconds_to_next: float | None, retry_after: float | None = None) -> float:
    """How long the whole webhook is left alone after a failure."""
    asked_for = min(retry_after or 0.0, _LONGEST_RETRY_AFTER)
    return max(min(seconds_to_next or _LONGEST_REST, _LONGEST_REST), asked_for)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110: a number or a date)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now) / timedelta(seconds=1), 0.0)
