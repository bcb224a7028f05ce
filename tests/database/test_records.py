"""Guarantees of the queries that the control plane relies on, on both databases."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import Connection, text

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Progress
from cmcl.contract.model import ModelSpec
from service.core.errors import DatabaseUnavailable, WriteConflict
from service.core.principal import LOCAL
from service.core.settings import Settings
from service.core.states import IllegalMove
from service.database.engine import Database, open_database
from service.database.queries import job_queue, jobs, models
from service.database.queries.jobs import Report, RunningAttempt, store_progress
from service.database.queries.overviews import read_backlog
from service.database.rows import JobRow, PreparedRows
from service.datasets.intake import Intake, NewDataset, accept_dataset
from service.registry.models import Limits, create_model

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 4, "text": 3})
SETTINGS = Settings.model_validate({"allowed_prefixes": ("s3://bucket",)})
NOTHING = PreparedRows(rejected_rows=0, rejected=())


@pytest.fixture
def model(database: Database) -> Database:
    """A database with the model `scenes`."""
    with database.write() as connection:
        models.create(connection, "scenes", "default", SPEC, NOW)
    return database


def _post(database: Database, shard: str = "x") -> JobRow:
    body = {
        "model": "scenes",
        "name": "one",
        "pair": {"first": "image", "second": "text"},
        "shards": [{"uri": f"s3://bucket/{shard}"}],
    }
    request = NewDataset.model_validate(body)
    intake = Intake.of(LOCAL, NOW, SETTINGS, request)
    accepted = database.settle(lambda connection: accept_dataset(connection, request, intake))
    assert accepted.job is not None
    return accepted.job


def _job(database: Database, seen: JobRow) -> JobRow:
    with database.read() as connection:
        found = jobs.find(connection, seen.id)
    assert found is not None
    return found


def test_moments_are_read_in_utc(database: Database) -> None:
    local = NOW.astimezone(timezone(timedelta(hours=9)))
    with database.write() as connection:
        models.create(connection, "scenes", "default", SPEC, local)
    with database.read() as connection:
        found = models.find(connection, "scenes")
    assert found is not None
    assert (found.created_at, found.created_at.utcoffset()) == (NOW, timedelta(0))


def test_a_moment_without_zone_is_refused(database: Database) -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(Exception, match="without a time zone"), database.write() as connection:
        models.create(connection, "scenes", "default", SPEC, naive)


def test_a_specification_is_read_as_it_was_written(model: Database) -> None:
    with model.read() as connection:
        found = models.find(connection, "scenes")
    assert found is not None
    assert found.spec == SPEC


def test_a_transition_requires_the_current_state(model: Database) -> None:
    seen = _post(model)
    for expected in (True, False):
        with model.write() as connection:
            assert jobs.move(connection, seen, JobState.PREPARING, NOW) is expected


def test_a_transition_requires_the_current_revision(model: Database) -> None:
    seen = _post(model)
    with model.write() as connection:
        jobs.move(connection, seen, JobState.PREPARING, NOW)
        jobs.move(connection, _job_in(connection, seen), JobState.PREPARED, NOW, prepared=NOTHING)
    prepared = _job(model, seen)
    with model.write() as connection:
        job_queue.start_attempt(connection, prepared, None, "job-a1", NOW)
    submitting = _job(model, seen)
    stale = replace(submitting, revision=prepared.revision)
    with model.write() as connection:
        assert not jobs.move(connection, stale, JobState.RUNNING, NOW)
        assert jobs.move(connection, submitting, JobState.RUNNING, NOW)


def test_a_cancel_stops_what_was_decided_before_it(model: Database) -> None:
    seen = _post(model)
    with model.write() as connection:
        jobs.move(connection, seen, JobState.PREPARING, NOW)
    preparing = _job(model, seen)
    with model.write() as connection:
        assert jobs.request_cancel(connection, preparing, NOW)
        assert not jobs.move(connection, preparing, JobState.PREPARED, NOW, prepared=NOTHING)


def test_an_illegal_move_is_an_error(model: Database) -> None:
    seen = _post(model)
    with pytest.raises(IllegalMove), model.write() as connection:
        jobs.move(connection, seen, JobState.PUBLISHED, NOW)


def test_a_second_job_of_a_model_does_not_begin(model: Database) -> None:
    first, second = _prepared(model, "x"), _prepared(model, "y")
    with model.write() as connection:
        assert not job_queue.start_attempt(connection, second, None, f"{second.id}-a1", NOW)
        assert job_queue.start_attempt(connection, first, None, f"{first.id}-a1", NOW)
        assert not job_queue.start_attempt(connection, second, None, f"{second.id}-a1", NOW)
        current = job_queue.current(connection, "scenes")
    assert current is not None
    assert current.id == first.id


def test_a_job_that_is_not_prepared_keeps_those_behind_it_waiting(model: Database) -> None:
    first, second = _post(model, "x"), _prepared(model, "y")
    with model.read() as connection:
        assert job_queue.current(connection, "scenes") is None
        assert job_queue.must_wait(connection, second)
    with model.write() as connection:
        assert jobs.move(connection, first, JobState.CANCELLED, NOW)
        current = job_queue.current(connection, "scenes")
    assert current is not None
    assert current.id == second.id


def _prepared(model: Database, name: str) -> JobRow:
    seen = _post(model, name)
    with model.write() as connection:
        jobs.move(connection, seen, JobState.PREPARING, NOW)
        jobs.move(connection, _job_in(connection, seen), JobState.PREPARED, NOW, prepared=NOTHING)
    return _job(model, seen)


def _job_in(connection: Connection, seen: JobRow) -> JobRow:
    found = jobs.find(connection, seen.id)
    assert found is not None
    return found


def test_of_many_movers_one_wins(model: Database) -> None:
    seen = _post(model)
    ready = Barrier(4)

    def claim(_: int) -> bool:
        ready.wait()
        with model.write() as connection:
            return jobs.move(connection, seen, JobState.PREPARING, NOW)

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(claim, range(4))) == [False, False, False, True]


def test_of_many_heads_one_is_next(model: Database) -> None:
    ready = Barrier(4)

    def publish(_: int) -> bool:
        ready.wait()
        with model.write() as connection:
            return models.advance_head(connection, "scenes", None, 1)

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(publish, range(4))) == [False, False, False, True]


def test_the_same_dataset_at_once_is_one_job(model: Database) -> None:
    ready = Barrier(4)

    def post(_: int) -> str:
        ready.wait()
        return _post(model).id

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(post, range(4)))) == 1


def test_the_same_model_at_once_is_one_model(database: Database) -> None:
    ready = Barrier(4)

    def post(_: int) -> bool:
        ready.wait()
        return database.settle(
            lambda connection: (
                create_model(connection, "scenes", SPEC, LOCAL, NOW, Limits(500, 1 << 30)).is_new
            )
        )

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(post, range(4))) == [False, False, False, True]


def _store_progress(connection: Connection, job: JobRow, progress: Progress) -> None:
    attempt = RunningAttempt(job.id, job.attempt, job.model, job.revision)
    store_progress(connection, [Report(attempt, progress)], NOW)


def test_progress_is_kept_and_null_is_null(model: Database) -> None:
    seen = _post(model)
    assert seen.progress is None
    progress = Progress(phase="training", updates_done=3, updates_total=9, at=NOW)
    with model.write() as connection:
        _store_progress(connection, seen, progress)
    assert _job(model, seen).progress == progress
    with model.read() as connection:
        query = "SELECT count(*) FROM datasets WHERE manifest IS NULL"
        assert connection.exec_driver_sql(query).scalar_one() == 1


def test_only_a_running_attempt_with_progress_is_training(model: Database) -> None:
    seen = _post(model)
    progress = Progress(phase="training", updates_done=3, at=NOW)
    collected = []
    for step in (
        lambda c, job: jobs.move(c, job, JobState.PREPARING, NOW),
        lambda c, job: jobs.move(c, job, JobState.PREPARED, NOW, prepared=NOTHING),
        lambda c, job: job_queue.start_attempt(c, job, None, f"{job.id}-a1", NOW),
        lambda c, job: jobs.move(c, job, JobState.RUNNING, NOW),
        lambda c, job: _store_progress(c, job, progress),
        lambda c, job: jobs.move(c, job, JobState.GATING, NOW),
    ):
        with model.write() as connection:
            step(connection, _job(model, seen))
        with model.read() as connection:
            collected.append(read_backlog(connection).training)
    assert collected == [{}, {}, {}, {}, {"scenes": 3}, {}]


def test_a_reader_does_not_wait_for_a_writer(model: Database) -> None:
    with model.write() as writer:
        models.forget_pointer_written(writer, "scenes")
        with model.read() as reader:
            assert models.find(reader, "scenes") is not None


def test_an_error_undoes_the_whole_transaction(database: Database) -> None:
    def create_twice() -> None:
        with database.write() as connection:
            models.create(connection, "scenes", "default", SPEC, NOW)
            models.create(connection, "scenes", "default", SPEC, NOW)

    with pytest.raises(WriteConflict):
        create_twice()
    with database.read() as connection:
        assert models.find(connection, "scenes") is None


def test_a_database_that_is_not_there_says_so() -> None:
    database = open_database("postgresql://nobody@127.0.0.1:1/x")
    with pytest.raises(DatabaseUnavailable), database.read():
        pass
    database.close()


def test_an_outage_is_logged_without_statement_and_values(database: Database) -> None:
    statement = text("SELECT CAST(:secret AS INTEGER) FROM nowhere")
    with pytest.raises(Exception, match="nowhere") as raised, database.write() as connection:
        connection.execute(statement, {"secret": "whsec_0123456789"})
    # What a log would show of it.
    for error in (raised.value, raised.value.__cause__):
        assert "whsec_" not in str(error)
    if isinstance(raised.value, DatabaseUnavailable):
        assert "SELECT" not in str(raised.value)


def test_waiting_for_a_lock_times_out(database: Database) -> None:
    is_sqlite = database.engine.dialect.name == "sqlite"
    asked = "PRAGMA busy_timeout" if is_sqlite else "SHOW lock_timeout"
    with database.read() as connection:
        assert connection.exec_driver_sql(asked).scalar_one() in (15_000, "15s")


def test_a_server_that_vanished_is_not_waited_for_by_hours() -> None:
    database = open_database("postgresql://nobody@127.0.0.1:1/x?connect_timeout=3")
    _, given = database.engine.dialect.create_connect_args(database.engine.url)
    assert given["connect_timeout"] == "3"
    assert int(given["keepalives_idle"]) < 60
    assert int(given["tcp_user_timeout"]) < 60_000
    database.close()


def test_sqlite_flushes_every_commit(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'new' / 'cmcl.db'}")
    with database.read() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert pragmas == ["wal", 2, 1]
    database.close()


def test_a_log_that_holds_a_nul_can_be_quoted(model: Database) -> None:
    job = _post(model)
    with model.write() as connection:
        jobs.set_message(connection, job, "exit code 1: \0x")
    assert _job(model, job).message == "exit code 1: \N{REPLACEMENT CHARACTER}x"
