"""Events and deliveries on both databases: none skipped, none duplicated, none sent twice at once."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread

import pytest
from sqlalchemy import Connection, func, insert, select

from service.database.engine import Database, Seek, open_database
from service.database.queries import deliveries as queue
from service.database.queries import events, webhooks
from service.database.queries.deliveries import Attempt
from service.database.queries.events import EventFilter
from service.database.queries.webhooks import WebhookRow
from service.database.rows import Event
from service.database.tables import deliveries
from service.database.tables import events as event_table
from service.events.feed import number_events

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)
EVERYTHING = EventFilter()

on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def _emit(connection: Connection, model: str, owner: str = "default") -> None:
    events.emit(connection, Event(kind="model.gate", owner=owner, model=model), NOW)


def _listed(database: Database, after: int = 0) -> list[tuple[int, str]]:
    """The events that a listener reads now."""
    number_events(database)
    with database.read() as connection:
        found = events.page(connection, EVERYTHING, Seek(after, limit=1000))
    return [(event.sequence, event.model) for event in found]


def _webhook(database: Database, name: str = "wh-1", owner: str = "default") -> WebhookRow:
    webhook = WebhookRow(
        name, owner, "https://example.com", "whsec_MDEyMzQ1", ("model.gate",), None, NOW
    )
    with database.write() as connection:
        webhooks.create(connection, webhook)
    return webhook


def _number_of_deliveries(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(deliveries)).scalar_one()


@contextmanager
def _open_transaction(database: Database) -> Iterator[Connection]:
    """Open a transaction on its own pool connection; it is committed at the end of the block."""
    with database.engine.begin() as connection:
        yield connection


@on_postgresql
def test_an_event_that_is_committed_late_is_not_skipped(database: Database) -> None:
    """The first transaction takes the lower number of the sequence, and is committed second."""
    with _open_transaction(database) as slow:
        _emit(slow, "slow")
        with _open_transaction(database) as quick:
            _emit(quick, "quick")
        with database.read() as connection:
            query = select(event_table.c.sequence)
            assert list(connection.scalars(query)) == [2], "the order of numbers was to be wrong"
        seen = _listed(database)
        assert seen == [(1, "quick")]
    assert _listed(database, after=seen[-1][0]) == [(2, "slow")]


@on_postgresql
def test_numbering_does_not_wait_for_open_transactions(database: Database) -> None:
    with ExitStack() as stack:
        for number in range(3):
            _emit(stack.enter_context(_open_transaction(database)), f"open-{number}")
        with _open_transaction(database) as connection:
            _emit(connection, "done")
        assert _listed(database) == [(1, "done")]
    assert len(_listed(database, after=1)) == 3


def test_concurrent_emitters_give_each_event_one_position(database: Database) -> None:
    """A concurrent listener reads positions without a gap, in every page."""
    barrier = Barrier(5)
    stop = threading.Event()
    pages: list[list[int]] = []

    def emit_one(name: str) -> None:
        barrier.wait()
        for _ in range(25):
            with database.write() as connection:
                _emit(connection, name)
            number_events(database)

    def listen() -> None:
        position = 0
        barrier.wait()
        while not stop.is_set() or pages[-1]:
            found = [place for place, _ in _listed(database, position)]
            pages.append(found)
            position = found[-1] if found else position
        pages.append([place for place, _ in _listed(database, position)])

    listener = Thread(target=listen)
    listener.start()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(emit_one, ["a", "b", "c", "d"]))
    stop.set()
    listener.join()
    assert [place for found in pages for place in found] == list(range(1, 101))


def test_more_events_than_one_transaction_numbers_are_numbered(database: Database) -> None:
    with database.write() as connection:
        for number in range(events.MOST_AT_ONCE + 5):
            _emit(connection, f"m{number}")
    number_events(database)
    with database.read() as connection:
        assert events.newest(connection) == events.MOST_AT_ONCE + 5
        (last,) = events.page(connection, EVERYTHING, Seek(events.MOST_AT_ONCE + 4, limit=10))
    assert last.model == f"m{events.MOST_AT_ONCE + 4}"


def test_a_place_is_never_given_twice(database: Database) -> None:
    """Not even after the events at that position were removed."""
    for expected in (1, 2, 3):
        with database.write() as connection:
            _emit(connection, "scenes")
        assert _listed(database) == [(expected, "scenes")]
        with database.write() as connection:
            assert events.forget_before(connection, LATER, 10) == 1


def test_a_rolled_back_event_is_neither_emitted_nor_delivered(database: Database) -> None:
    _webhook(database)
    with database.write() as connection:
        _emit(connection, "scenes")
        connection.rollback()
    assert _listed(database) == []
    assert _number_of_deliveries(database) == 0


def test_an_event_comes_with_a_delivery_for_each_webhook_that_wants_it(database: Database) -> None:
    _webhook(database, "wh-1")
    _webhook(database, "wh-2")
    with database.write() as connection:
        for kind, owner in (("model.gate", "default"), ("model.gate", "other"), ("x", "other")):
            events.emit(connection, Event(kind=kind, owner=owner, model="scenes"), NOW)
    assert _number_of_deliveries(database) == 2


def test_a_webhook_is_claimed_by_one_of_many(database: Database, database_url: str) -> None:
    for number in range(20):
        _webhook(database, f"wh-{number:02}")
    with database.write() as connection:
        _emit(connection, "scenes")
    replicas = [open_database(database_url) for _ in range(4)]
    barrier = Barrier(4)

    def claim(number: int) -> list[str]:
        barrier.wait()
        claimed: list[str] = []
        for _ in range(20):
            with replicas[number].write() as connection:
                found = webhooks.claim(connection, f"replica-{number}", NOW, LATER, 3, 20)
            claimed += [webhook.id for webhook in found]
        return claimed

    with ThreadPoolExecutor(4) as threads:
        claims = list(threads.map(claim, range(4)))
    assert sorted(itertools.chain(*claims)) == [f"wh-{number:02}" for number in range(20)]
    for replica in replicas:
        replica.close()


def test_one_owner_with_many_webhooks_leaves_places_to_others(database: Database) -> None:
    names = {
        owner: [f"wh-{owner}-{number}" for number in range(count)]
        for owner, count in (("red", 9), ("blue", 3), ("green", 1))
    }
    for owner, webhooks_of_owner in names.items():
        for name in webhooks_of_owner:
            _webhook(database, name, owner)
    with database.write() as connection:
        _emit(connection, "scenes", "red")

    def claim(limit: int) -> list[str]:
        with database.write() as connection:
            found = webhooks.claim(connection, "sender", NOW, LATER, limit, 6)
        return sorted(webhook.id.split("-")[1] for webhook in found)

    # Red has all slots except the reserved ones, and gets none of those.
    assert (claim(8), claim(2)) == (["red"] * 6, [])
    with database.write() as connection:
        for owner in ("blue", "green"):
            _emit(connection, "scenes", owner)
    assert claim(2) == ["blue", "green"]
    with database.write() as connection:
        for name in [webhook.id for webhook in webhooks.page(connection, "red", Seek())]:
            webhooks.release(connection, name, "sender", NOW)
    # Blue has one place by now, and green none that is ready.
    assert claim(1) == ["red"]
    assert claim(5) == ["blue", "blue", "red", "red", "red"]


def test_messages_beyond_what_may_wait_for_an_owner_are_not_written(database: Database) -> None:
    emitted: list[Event] = []
    for name, owner in (("wh-1", "red"), ("wh-2", "red"), ("wh-3", "blue")):
        _webhook(database, name, owner)
    waiting = [
        {
            "id": f"dl-{number}",
            "webhook": f"wh-{1 + number % 2}",
            "payload": {},
            "attempts": 0,
            "next_at": NOW,
            "created_at": NOW,
        }
        for number in range(queue.MOST_WAITING - 1)
    ]
    observed = Database(database.engine, database.writer_lock)
    observed.subscribe(emitted.append)
    with observed.write() as connection:
        connection.execute(insert(deliveries), waiting)
        for owner in ("red", "red", "blue"):
            _emit(connection, "scenes", owner)
    # One more of red, and one of blue, which has its own limit.
    assert _number_of_deliveries(database) == queue.MOST_WAITING + 1
    skipped = [each.data["number"] for each in emitted if each.kind == events.SKIPPED]
    assert skipped == [1, 2]
    # Skipped messages are not events, which webhooks would have to receive as well.
    assert len(_listed(database)) == 3


@on_postgresql
def test_claiming_passes_over_what_another_has_locked(database: Database) -> None:
    for name in ("wh-1", "wh-2"):
        _webhook(database, name)
    with database.write() as connection:
        _emit(connection, "scenes")
    with _open_transaction(database) as first, _open_transaction(database) as second:
        (one,) = webhooks.claim(first, "first", NOW, LATER, 1, 20)
        (two,) = webhooks.claim(second, "second", NOW, LATER, 5, 20)
    assert {one.id, two.id} == {"wh-1", "wh-2"}


@on_postgresql
def test_emitting_waits_neither_for_senders_nor_for_emitters(database: Database) -> None:
    _webhook(database)
    with database.write() as connection:
        _emit(connection, "scenes")
    with _open_transaction(database) as first, _open_transaction(database) as second:
        webhooks.claim(first, "sender", NOW, LATER, 5, 20)
        for connection in (first, second):
            connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
            _emit(connection, "scenes")
    assert _number_of_deliveries(database) == 3


@on_postgresql
def test_removing_a_webhook_waits_for_concurrent_emitters(database: Database) -> None:
    webhook = _webhook(database)

    def remove() -> None:
        with database.write() as connection:
            webhooks.remove(connection, webhook.id)

    with ThreadPoolExecutor(1) as thread:
        with _open_transaction(database) as connection:
            _emit(connection, "scenes")
            removal = thread.submit(remove)
            with pytest.raises(TimeoutError):
                removal.result(0.2)
        removal.result(60)
    assert _number_of_deliveries(database) == 0


def test_of_two_that_sent_the_same_delivery_one_records_it(database: Database) -> None:
    webhook = _webhook(database)
    with database.write() as connection:
        _emit(connection, "scenes")
        seen = queue.next_due(connection, webhook.id, NOW)
    assert seen is not None
    with database.write() as connection:
        assert queue.record_success(connection, seen, Attempt(NOW, 204))
        assert not queue.record_success(connection, seen, Attempt(LATER, 204))
        failed = Attempt(LATER, 500, "it answered 500", LATER, LATER)
        assert not queue.record_failure(connection, seen, failed)
        found = queue.find(connection, seen.id)
    assert found is not None
    assert (found.attempts, found.status, found.delivered_at) == (1, 204, NOW)


def test_a_removed_webhook_receives_no_deliveries(database: Database) -> None:
    webhook = _webhook(database)
    with database.write() as connection:
        _emit(connection, "scenes")
        webhooks.disable(connection, webhook.id, "it answered 410", NOW)
        _emit(connection, "scenes")
        assert not webhooks.is_any_due(connection, LATER)
        (given_up,) = queue.page(connection, webhook.id, Seek())
    assert given_up.failed_at == NOW
    assert given_up.error == "the webhook was disabled: it answered 410"


def test_looking_for_new_events_reads_an_index_and_no_history(database: Database) -> None:
    explain = "EXPLAIN QUERY PLAN" if database.engine.dialect.name == "sqlite" else "EXPLAIN"
    with database.write() as connection:
        for number in range(300):
            _emit(connection, f"m{number}")
        events.number(connection)
    with database.write() as connection:
        connection.exec_driver_sql("ANALYZE")
        for condition in ("position IS NULL", "position > 290"):
            query = f"{explain} SELECT sequence FROM events WHERE {condition} LIMIT 5"
            plan = str(connection.exec_driver_sql(query).all()).lower()
            assert "index" in plan
            assert "scan events" not in plan
            assert "seq scan" not in plan
