"""On PostgreSQL, replicas are notified of each other's events at commit."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from service.core.errors import DatabaseUnavailable
from service.database.engine import Database, Listener, has_notifications
from service.database.queries import events
from service.database.rows import Event
from service.jobs.reconciler import Notifications

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
def listener(database: Database) -> Iterator[Listener]:
    if not has_notifications(database):
        pytest.skip("SQLite has no notifications")
    listener = Listener(database)
    assert listener.connect()
    yield listener
    listener.close()


def _emit(database: Database, model: str) -> None:
    with database.write() as connection:
        events.emit(connection, Event(kind="model.gate", owner="o", model=model, data={}), NOW)


def test_an_event_is_heard_after_its_commit_and_not_before(
    database: Database, listener: Listener
) -> None:
    with database.write() as connection:
        events.emit(connection, Event(kind="model.gate", owner="o", model="a", data={}), NOW)
        assert listener.wait(0.05) == set()
    assert listener.wait(60) == {"a"}
    assert listener.wait(0.01) == set()


def test_several_events_of_a_model_wake_it_once(database: Database, listener: Listener) -> None:
    for model in "aab":
        _emit(database, model)
    heard = listener.wait(60)
    while heard != {"a", "b"}:
        heard |= listener.wait(60)


def test_events_that_were_missed_while_not_connected_are_found_by_a_resync(
    database: Database, listener: Listener
) -> None:
    woken, resyncs, stop = list[str](), list[int](), threading.Event()
    loop = Notifications(database, woken.append, lambda: resyncs.append(1))
    _emit(database, "before")
    loop.step(stop)
    assert (woken, resyncs) == ([], [1])
    _emit(database, "after")
    loop.step(stop)
    assert (woken, resyncs) == (["after"], [1])
    loop.report(DatabaseUnavailable("on purpose"))
    loop.step(stop)
    assert len(resyncs) == 2
    loop.report(DatabaseUnavailable("on purpose"))


def test_a_lost_connection_is_replaced_and_what_was_missed_is_found(
    database: Database, listener: Listener
) -> None:
    resyncs, stop = list[int](), threading.Event()
    loop = Notifications(database, lambda _: None, lambda: resyncs.append(1))
    _emit(database, "before")
    loop.step(stop)
    with database.write() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
        )
    with pytest.raises(DatabaseUnavailable) as lost:
        loop.step(stop)
    loop.report(lost.value)
    _emit(database, "after")
    loop.step(stop)
    assert len(resyncs) == 2
    loop.report(lost.value)


def test_a_listener_that_is_not_connected_says_so(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="not connected"):
        Listener(database).wait(0)
