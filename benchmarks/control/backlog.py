"""Cost of a reconciliation round with many queued and many more finished jobs.

Rows are written directly; the rounds are the product's own. A query that scans the history would
make the round with a hundred thousand finished jobs slower than the one without.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from benchmarks.control.databases import spread
from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import ModelSpec
from service.app import Parts, create_context
from service.context import Context, Tuning
from service.core.settings import Settings
from service.database.engine import Database
from service.database.queries import models
from service.database.tables import datasets, jobs
from service.jobs.reconciler import Reconciler
from service.launchers.port import LaunchState, LaunchStatus, Submission

SPEC = ModelSpec(modalities={"image": 4, "text": 3})
_FEW = 10
_CHUNK = 5_000
_ROUNDS = 50


class _Clock:
    """A wall clock that can be advanced."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def leap(self) -> None:
        """Advance far enough that a scrape finds no cached values."""
        self._ahead += timedelta(minutes=2)


class BusyCluster:
    """A launcher whose submissions run forever."""

    def submit(self, submission: Submission) -> None:
        """See the port."""

    def statuses(self, submission_ids: Iterable[str]) -> dict[str, LaunchStatus]:
        """See the port."""
        return dict.fromkeys(submission_ids, LaunchStatus(LaunchState.RUNNING))

    def stop(self, submission_id: str) -> None:
        """See the port."""

    def log(self, submission_id: str) -> str:
        """See the port."""
        return ""

    def forget(self, submission_id: str) -> None:
        """See the port."""

    def resources(self) -> None:
        """See the port."""


def measure_backlog(url: str, folder: Path, queued: int, finished: int) -> dict[str, Any]:
    """Return milliseconds of a round and of a scrape: with few jobs, with a queue, and with history
    as well."""
    clock = _Clock()
    context = _context(url, folder, clock)
    # One job is running, so that the others stay queued.
    write_jobs(context.database, range(1), JobState.RUNNING)
    write_jobs(context.database, range(_FEW), JobState.QUEUED)
    figures: dict[str, Any] = {"few": _round(context, clock)}
    write_jobs(context.database, range(_FEW, queued), JobState.QUEUED)
    figures["queue"] = _round(context, clock)
    write_jobs(context.database, range(finished), JobState.PUBLISHED)
    figures["queue and history"] = _round(context, clock)
    context.database.close()
    few, all_of_it = figures["few"], figures["queue and history"]
    return {
        **figures,
        "queued": queued,
        "finished": finished,
        "round_ratio": round(all_of_it["round"]["p50_ms"] / few["round"]["p50_ms"], 2),
        "scrape_ratio": round(all_of_it["scrape"]["p50_ms"] / few["scrape"]["p50_ms"], 2),
    }


def _context(url: str, folder: Path, clock: _Clock) -> Context:
    settings = Settings(
        database_url=url,
        store_uri=(folder / "store").as_uri(),
        auth="off",
    )
    parts = Parts(launcher=BusyCluster(), clock=clock, tuning=Tuning(start_deadline_seconds=1e9))
    context = create_context(settings, parts)
    with context.database.write() as connection:
        models.create(connection, "backlog", "default", SPEC, datetime.now(UTC))
    return context


def _round(context: Context, clock: _Clock) -> dict[str, Mapping[str, float]]:
    reconciler = Reconciler(context)
    drain(reconciler)
    rounds = [_seconds(partial(drain, reconciler)) for _ in range(_ROUNDS)]
    reconciler.release()
    scrapes = []
    for _ in range(_ROUNDS):
        clock.leap()
        scrapes.append(_seconds(lambda: list(context.metrics.registry.collect())))
    return {"round": spread(rounds), "scrape": spread(scrapes)}


def drain(reconciler: Reconciler) -> None:
    """Renew leases, resync, look at the attempts, and process keys until none is due."""
    reconciler.step(threading.Event())
    reconciler.resync()
    reconciler.monitor.look()
    while (key := reconciler.queue.get(0)) is not None:
        reconciler.process(key)


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_jobs(database: Database, numbers: range, state: JobState) -> None:
    """Insert jobs of the model `backlog`, with their datasets."""
    for start in range(0, len(numbers), _CHUNK):
        some = numbers[start : start + _CHUNK]
        with database.write() as connection:
            connection.execute(insert(datasets), [_dataset(state, number) for number in some])
            connection.execute(insert(jobs), [_job(state, number) for number in some])
    if database.engine.dialect.name == "postgresql":
        with database.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE")


def _dataset(state: JobState, number: int) -> dict[str, object]:
    now = datetime.now(UTC)
    return {
        "id": f"ds-{state}-{number}",
        "owner": "default",
        "model": "backlog",
        "name": "one",
        "pair_first": "image",
        "pair_second": "text",
        "request": {
            "model": "backlog",
            "name": "one",
            "pair": {"first": "image", "second": "text"},
            "shards": [{"uri": f"s3://captures/{number}"}],
        },
        "fingerprint": f"{state}-{number}",
        "created_at": now,
        "sealed_at": now,
    }


def _job(state: JobState, number: int) -> dict[str, object]:
    now = datetime.now(UTC)
    has_ended = state == JobState.PUBLISHED
    return {
        "id": f"job-{state}-{number}",
        "owner": "default",
        "model": "backlog",
        "dataset": f"ds-{state}-{number}",
        "dataset_name": "one",
        "state": state,
        "revision": 0,
        "attempt": 0 if state == JobState.QUEUED else 1,
        "attempts_before_retry": 0,
        "kind": "learn",
        "dry_run": False,
        "preparation": 0,
        "cancel_requested": False,
        "created_at": now,
        "state_changed_at": now,
        "finished_at": now - timedelta(days=1) if has_ended else None,
        "swept_at": now if has_ended else None,
    }
