"""Guarantees of the queries that the control plane relies on, on both databases."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import Connection, text

from cmcl.contract.api.access import Scope
from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import Progress
from cmcl.contract.model import ModelSpec
from service.core.errors import DatabaseUnavailable, WriteConflict
from service.core.principal import LOCAL
from service.core.settings import Settings
from service.core.states import IllegalMove
from service.database.engine import Database, Seek, open_database
from service.database.migrations import upgrade
from service.database.queries import attempts, datasets, job_queue, jobs, keys, models
from service.database.queries.attempts import FIRST_INTERVAL, MOST_POINTS, ProgressPoint
from service.database.queries.jobs import Report, RunningAttempt, store_progress
from service.database.queries.keys import KeyRow
from service.database.queries.overviews import read_backlog
from service.database.rows import Fingerprints, JobRow, PreparedRows
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
        job_queue.start_attempt(connection, prepared, None, NOW)
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
        assert not job_queue.start_attempt(connection, second, None, NOW)
        assert job_queue.start_attempt(connection, first, None, NOW)
        assert not job_queue.start_attempt(connection, second, None, NOW)
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
        lambda c, job: job_queue.start_attempt(c, job, None, NOW),
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


def test_a_full_disk_says_what_to_do_and_a_write_with_room_succeeds(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'full.db'}")
    upgrade(database)

    def create(limit: int) -> None:
        with database.write() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit}")
            models.create(connection, "scenes", "o" * 100_000, SPEC, NOW)

    with pytest.raises(DatabaseUnavailable, match="free space there"):
        create(1)
    create(1 << 30)
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


MINUTE = timedelta(minutes=1)
KEY = KeyRow(
    id="key-000000000001",
    owner="lab",
    name="one",
    scopes=frozenset({Scope.READ, Scope.TRAIN}),
    secret_sha256="0" * 64,
    created_at=NOW,
    created_by="operator",
    expires_at=NOW + timedelta(days=1),
)


def read(database: Database) -> KeyRow:
    with database.read() as connection:
        found = keys.find(connection, KEY.id)
    assert found is not None
    return found


@pytest.fixture
def _one_key(database: Database) -> None:
    with database.write() as connection:
        assert not keys.has_any(connection)
        keys.create(connection, KEY)


@pytest.mark.usefixtures("_one_key")
def test_a_key_is_read_as_it_was_written(database: Database) -> None:
    assert read(database) == KEY
    with database.read() as connection:
        assert keys.has_any(connection)
        assert keys.digest_of(connection, KEY.id) == KEY.secret_sha256
        assert keys.digest_of(connection, "key-none") is None
        assert keys.find(connection, "key-none") is None


@pytest.mark.usefixtures("_one_key")
def test_an_id_is_given_once(database: Database) -> None:
    with pytest.raises(WriteConflict), database.write() as connection:
        keys.create(connection, replace(KEY, name="two"))
    assert read(database).name == "one"


@pytest.mark.usefixtures("_one_key")
def test_pages_are_of_one_owner_or_of_all(database: Database) -> None:
    other = replace(KEY, id="key-000000000002", owner="others")
    with database.write() as connection:
        keys.create(connection, other)
    with database.read() as connection:
        assert keys.page(connection, None, Seek(limit=10)) == [KEY, other]
        assert keys.page(connection, None, Seek(KEY.id, limit=10)) == [other]
        assert keys.page(connection, "lab", Seek(limit=10)) == [KEY]
        assert keys.page(connection, None, Seek(limit=1)) == [KEY]


@pytest.mark.usefixtures("_one_key")
def test_the_first_revocation_stays(database: Database) -> None:
    for moment in (NOW, NOW + MINUTE):
        with database.write() as connection:
            keys.set_revoked(connection, KEY.id, moment)
    assert read(database).revoked_at == NOW
    assert not read(database).is_valid(NOW)


@pytest.mark.usefixtures("_one_key")
def test_two_services_write_one_use_a_minute(database: Database) -> None:
    moments = [NOW, NOW + MINUTE / 2, NOW + MINUTE, NOW + MINUTE * 3 / 2]
    seen = []
    for moment in moments:
        with database.write() as connection:
            keys.set_used(connection, KEY.id, moment, moment - MINUTE)
        seen.append(read(database).last_used_at)
    assert seen == [NOW, NOW, NOW + MINUTE, NOW + MINUTE]


@pytest.fixture
def job(database: Database) -> str:
    """A job with one attempt."""
    request = {"model": "scenes", "name": "one", "pair": {"first": "image", "second": "text"}}
    with database.write() as connection:
        models.create(connection, "scenes", "default", SPEC, NOW)
        dataset = datasets.create(connection, "default", request, NOW, Fingerprints("f"))
        job = jobs.create(connection, dataset, NOW)
        attempts.begin(connection, job.id, 1, None, NOW)
    return job.id


def _add(database: Database, job: str, *seconds: float) -> None:
    """Add progress at those times; the number of updates is that of tenths of a second."""
    with database.write() as connection:
        for second in seconds:
            at = NOW + timedelta(seconds=second)
            progress = Progress(phase="training", updates_done=round(10 * second), at=at)
            attempts.add_points(connection, [(job, 1, progress)], at)


def _points(database: Database, job: str) -> list[ProgressPoint]:
    with database.read() as connection:
        return attempts.points(connection, job, 1)


def _interval(database: Database, job: str) -> float | None:
    with database.read() as connection:
        found = attempts.find(connection, job, 1)
    assert found is not None
    return found.progress_interval


@pytest.mark.parametrize("spacing", [0.2, 0.7, 2.0, 40.0])
def test_a_curve_has_evenly_spaced_points_and_the_newest(
    database: Database, job: str, spacing: float
) -> None:
    times = [number * spacing for number in range(700)]
    for start in range(0, len(times), 50):
        some = times[start : start + 50]
        _add(database, job, *some)
        points = _points(database, job)
        interval = _interval(database, job)
        assert interval is not None
        assert len(points) <= MOST_POINTS
        assert points[-1].at == NOW + timedelta(seconds=some[-1])
        seconds = [(point.at - NOW).total_seconds() for point in points]
        gaps = [after - before for before, after in itertools.pairwise(seconds)]
        assert all(gap <= max(2 * interval, spacing) + 1e-6 for gap in gaps)
        assert [round(10 * second) for second in seconds] == [
            point.figures["updates_done"] for point in points
        ]
    assert len(_points(database, job)) >= MOST_POINTS / 3


def test_reports_within_an_interval_replace_each_other(database: Database, job: str) -> None:
    _add(database, job, 0.0, 0.1, 0.4, 0.6)
    assert [point.figures["updates_done"] for point in _points(database, job)] == [4, 6]
    assert _interval(database, job) == FIRST_INTERVAL


def test_a_long_silence_leaves_what_was_before(database: Database, job: str) -> None:
    _add(database, job, 0.0, 1.0, 2.0, 100_000.0)
    points = _points(database, job)
    assert [point.figures["updates_done"] for point in points] == [20, 1_000_000]
    _add(database, job, 200_000.0)
    assert len(_points(database, job)) == 3


def test_a_clock_that_goes_back_harms_nothing(database: Database, job: str) -> None:
    _add(database, job, 10.0, 5.0, 11.0)
    assert [point.figures["updates_done"] for point in _points(database, job)] == [50, 110]


def test_progress_of_an_unknown_attempt_is_not_kept(database: Database, job: str) -> None:
    progress = Progress(phase="training", at=NOW)
    with database.write() as connection:
        attempts.add_points(connection, [(job, 7, progress)], NOW)
        assert attempts.points(connection, job, 7) == []


def test_only_the_progress_of_that_job_is_removed(database: Database, job: str) -> None:
    _add(database, job, 0.0, 1.0)
    with database.write() as connection:
        attempts.forget_progress(connection, "job-000000000000")
    assert len(_points(database, job)) == 2
    with database.write() as connection:
        attempts.forget_progress(connection, job)
    assert _points(database, job) == []
