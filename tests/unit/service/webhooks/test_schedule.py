"""When a message is sent again."""

from datetime import UTC, datetime

import pytest

from service.events.webhook_delivery import (
    MAX_ATTEMPTS,
    STEPS,
    parse_retry_after,
    seconds_to_next,
    seconds_to_rest,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_all_attempts_together_take_about_three_days() -> None:
    assert 3 * 86400 < sum(STEPS) < 3.5 * 86400


def test_each_pause_is_longer_than_the_one_before() -> None:
    found = [seconds_to_next(attempts, chance=lambda: 1.0) for attempts in range(1, 10)]
    longest = [seconds for seconds in found if seconds is not None]
    shortest = [seconds_to_next(attempts, chance=lambda: 0.0) for attempts in range(1, 10)]
    assert longest == sorted(longest)
    assert len(longest) == len(found)
    assert shortest == list(STEPS)


def test_messages_that_failed_together_are_retried_apart() -> None:
    assert len({seconds_to_next(2) for _ in range(20)}) > 10


def test_there_is_a_last_attempt() -> None:
    assert seconds_to_next(MAX_ATTEMPTS - 1) is not None
    assert seconds_to_next(MAX_ATTEMPTS) is None
    assert seconds_to_next(MAX_ATTEMPTS, retry_after=60) is None


def test_retry_after_is_respected_up_to_a_day() -> None:
    assert seconds_to_next(1, retry_after=600) == 600
    assert seconds_to_next(1, retry_after=10**9) == 86400
    assert seconds_to_rest(600, retry_after=600) == 600
    assert seconds_to_rest(7200) == 300


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("9" * 400, 86400),
        ("Tue, 24 Nov 2026 12:01:00 GMT", 60),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Tue, 99 Nov 2026 12:01:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds
