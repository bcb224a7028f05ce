"""The progress of an attempt over time, thinned out evenly."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from cmcl.contract.job import Progress
from cmcl.contract.model import ModelSpec
from service.database.engine import Database
from service.database.queries import attempts, datasets, jobs, models
from service.database.queries.attempts import FIRST_INTERVAL, MOST_POINTS, ProgressPoint
from service.database.rows import Fingerprints

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 4, "text": 3})


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
