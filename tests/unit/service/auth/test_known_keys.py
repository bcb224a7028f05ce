"""What is remembered of keys: not too much, and not another secret for the same id."""

from dataclasses import replace

from service.auth.authenticator import KeyCache
from service.auth.keys import KeyText, mint
from service.database.queries.keys import KeyRecord
from service.principal import Scope
from tests.fakes.clock import ScriptedClock


def record(key: KeyText, clock: ScriptedClock) -> KeyRecord:
    return KeyRecord(key.id, "lab", "one", frozenset({Scope.READ}), key.digest, clock(), "tests")


def test_a_key_is_known_by_all_of_its_text() -> None:
    clock = ScriptedClock()
    known, key = KeyCache(clock), mint()
    assert known.find(key) is None
    known.keep(record(key, clock))
    assert known.find(key) == record(key, clock)
    wrong = replace(key, secret=mint().secret)
    assert known.find(wrong) is None
    assert not known.was_valid(wrong)


def test_a_key_that_was_read_long_ago_is_read_again() -> None:
    clock = ScriptedClock()
    known, key = KeyCache(clock), mint()
    known.keep(record(key, clock))
    clock.advance(5)
    assert known.find(key) is not None
    clock.advance(1)
    assert known.find(key) is None
    assert known.was_valid(key)
    known.forget(key.id)
    assert not known.was_valid(key)


def test_the_number_of_cached_keys_is_bounded() -> None:
    clock = ScriptedClock()
    known, keys = KeyCache(clock), [mint() for _ in range(10_002)]
    for key in keys:
        known.keep(record(key, clock))
    assert [known.was_valid(key) for key in keys[:3]] == [False, False, True]
    assert known.was_valid(keys[-1])


def test_use_is_due_once_a_minute_also_when_the_key_was_read_again() -> None:
    clock = ScriptedClock()
    known, key = KeyCache(clock), mint()
    assert not known.is_use_due(key.id)
    due = []
    for _ in range(13):
        known.keep(record(key, clock))
        due.append(known.is_use_due(key.id))
        clock.advance(10)
    assert [index for index, is_due in enumerate(due) if is_due] == [0, 6, 12]
