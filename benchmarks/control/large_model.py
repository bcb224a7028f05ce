"""A database with one large model, and a long history of jobs, written without the steps of the reconciler.

The rows have the shape that the product gives them: a version has a manifest with one line, one drift, one quality and
one recall for each dataset that is still measured. Job n learned version n, as long as there are versions; the newest
jobs are open.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from typing import Any

from sqlalchemy import Table, insert, update

from cmcl.contract.api.jobs import JobState
from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    Protection,
    Quality,
    Recall,
    VersionManifest,
    VersionReport,
)
from service.database.engine import Database
from service.database.queries import models, versions
from service.database.tables import datasets, event_positions, events, jobs, promotions
from service.database.tables import models as models_table

MODEL = "large"
OWNER = "default"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SPEC = ModelSpec(modalities={"image": 768, "text": 384, "audio": 512, "depth": 640})
_PAIRS = tuple(
    ModalityPair(first=first, second=second)
    for first, second in (("image", "text"), ("audio", "text"), ("depth", "image"))
)
_CHUNK = 2_000
_DIGEST = "0123456789abcdef" * 4
_FILE = FileEntry(sha256=_DIGEST, bytes=1 << 20)
_OPEN = (JobState.RUNNING, *[JobState.QUEUED] * 200)
_ENDED = (JobState.FAILED, JobState.REJECTED, JobState.CANCELLED, JobState.REPORTED)


@dataclass(frozen=True)
class Size:
    """How many rows of each kind."""

    versions: int = 1_000
    datasets: int = 100
    jobs: int = 100_000


def fill(database: Database, size: Size = Size()) -> None:
    """Insert the model with its versions, promotions, datasets, jobs and events."""
    with database.write() as connection:
        models.create(connection, MODEL, OWNER, SPEC, NOW - _age(0, size))
    _insert(database, datasets, _datasets(size))
    _insert(database, jobs, _jobs(size))
    with database.write() as connection:
        for number in range(1, size.versions + 1):
            created = NOW - _age(number, size)
            versions.create(connection, _manifest(number, size), created)
            versions.set_stored(connection, MODEL, number, created)
    _insert(database, promotions, _promotions(size))
    _insert(database, events, _events(size))
    with database.write() as connection:
        connection.execute(update(event_positions).values(newest=size.jobs))
        values = {"head": size.versions, "live_version": size.versions}
        generations = dict.fromkeys(
            ("live_generation", "live_revision", "written_revision"), size.versions
        )
        of_model = update(models_table).where(models_table.c.name == MODEL)
        connection.execute(of_model.values(**values, **generations, revised_at=NOW))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")


def dataset_id(number: int) -> str:
    """Id of the dataset of job `number`, counted from 1."""
    return f"ds-{number:012x}"


def job_id(number: int) -> str:
    """Id of job `number`, counted from 1."""
    return f"job-{number:012x}"


def _insert(database: Database, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    waiting = iter(rows)
    while some := list(islice(waiting, _CHUNK)):
        with database.write() as connection:
            connection.execute(insert(table), some)


def _age(number: int, size: Size) -> timedelta:
    """How long ago job `number` was created: one every ten minutes."""
    return timedelta(minutes=10 * (size.jobs - number))


def _name(number: int) -> str:
    return f"captions-{number:06d}"


def _pair(number: int) -> ModalityPair:
    return _PAIRS[number % len(_PAIRS)]


def _datasets(size: Size) -> Iterator[dict[str, Any]]:
    for number in range(1, size.jobs + 1):
        pair, created = _pair(number), NOW - _age(number, size)
        yield {
            "id": dataset_id(number),
            "owner": OWNER,
            "model": MODEL,
            "name": _name(number),
            "pair_first": pair.first,
            "pair_second": pair.second,
            "request": {
                "model": MODEL,
                "name": _name(number),
                "pair": {"first": pair.first, "second": pair.second},
                "shards": [{"uri": f"s3://captures/{number}.parquet"}],
            },
            "fingerprint": f"{number:064x}",
            "created_at": created,
            "sealed_at": created,
        }


def running_number(size: Size) -> int:
    """Number of the job that runs; all later ones wait for it."""
    return size.jobs - len(_OPEN) + 1


def judged_number(size: Size) -> int:
    """Number of the newest job that has ended: its candidate was rejected, and can still be looked at."""
    return running_number(size) - 1


def candidate(size: Size) -> VersionManifest:
    """The manifest of the candidate of that job."""
    number = judged_number(size)
    learned = [*range(1, size.datasets), number]
    return _manifest(size.versions, size).model_copy(
        update={
            "version": size.versions + 1,
            "parent": size.versions,
            "job": job_id(number),
            "dataset": dataset_id(number),
            "learned": tuple(_line(each) for each in learned),
            "report": _report(size.versions + 1, learned),
        }
    )


def _state(number: int, size: Size) -> JobState:
    if number <= size.versions:
        return JobState.PUBLISHED
    if number == judged_number(size):
        return JobState.REJECTED
    is_open = number >= running_number(size)
    return _OPEN[number - running_number(size)] if is_open else _ENDED[number % len(_ENDED)]


def _jobs(size: Size) -> Iterator[dict[str, Any]]:
    for number in range(1, size.jobs + 1):
        state, created = _state(number, size), NOW - _age(number, size)
        is_open = state in _OPEN
        is_kept = is_open or number == judged_number(size)
        has_failed = state in (JobState.FAILED, JobState.REJECTED)
        yield {
            "id": job_id(number),
            "owner": OWNER,
            "model": MODEL,
            "dataset": dataset_id(number),
            "dataset_name": _name(number),
            "kind": "learn",
            "dry_run": state == JobState.REPORTED,
            "state": state,
            "reason": "training_failed" if has_failed else None,
            "message": "the loss is not finite after update 12" if has_failed else None,
            "revision": 7,
            "attempt": 0 if state == JobState.QUEUED else 1,
            "attempts_before_retry": 0,
            "version": min(number, size.versions + 1)
            if number <= size.versions or is_kept
            else None,
            "parent_version": size.versions if is_kept else None,
            "preparation": 1,
            "cancel_requested": False,
            "created_at": created,
            "state_changed_at": created if is_open else created + timedelta(minutes=5),
            "started_at": None if state == JobState.QUEUED else created,
            "finished_at": None if is_open else created + timedelta(minutes=5),
            "swept_at": None if is_kept else created + timedelta(minutes=6),
        }


def _manifest(number: int, size: Size) -> VersionManifest:
    """With lines of the oldest datasets and of its own, as many as are measured."""
    learned = [*range(1, min(number, size.datasets)), number]
    return VersionManifest(
        model=MODEL,
        version=number,
        parent=number - 1 or None,
        job=job_id(number),
        attempt=1,
        dataset=dataset_id(number),
        spec=SPEC,
        code_version="benchmark",
        created_at=NOW - _age(number, size),
        files={"heads.safetensors": _FILE, "memory.safetensors": _FILE},
        learned=tuple(_line(each) for each in learned),
        report=_report(number, learned),
    )


@cache
def _line(number: int) -> LearnedDataset:
    return LearnedDataset(
        dataset=dataset_id(number),
        name=_name(number),
        pair=_pair(number),
        rows=10_000 + number,
        version=number,
        moments=_FILE,
        shard_digests=(_DIGEST,),
        recall=_recall(number, number),
    )


def _recall(number: int, version: int) -> Recall:
    """Recall of dataset `number` in a version: near its own value, and slowly falling."""
    drawn = random.Random(number * 100_003 + version)  # noqa: S311 (figures, no secret)
    base = 0.4 + 0.005 * (number % 80)
    # The newest dataset may have a larger number than its version: jobs that failed have numbers, too.
    value = max(0.0, base - 0.0001 * max(0, version - number) + drawn.uniform(-0.01, 0.01))
    return Recall(rows=1_000, at_1=value, at_5=min(1.0, value + 0.15), at_10=min(1.0, value + 0.2))


def _report(number: int, learned: list[int]) -> VersionReport:
    earlier, pair = learned[:-1], _pair(number).modalities
    free = max(0.01, 0.995**number)
    return VersionReport(
        final_loss=1.25,
        updates=780,
        ranks=2,
        temperature=0.07,
        seconds={"reading": 1.5, "moments": 2.5, "training": 64.0, "certifying": 3.0},
        protection={
            each: Protection(
                input_directions=200,
                input_width=SPEC.widths[each],
                output_directions=128,
                output_width=SPEC.width,
                blocked_share=1 - free,
            )
            for each in pair
        },
        drift={
            dataset_id(each): Drift(
                since_learned=0.0002 * (number - each) + 0.0001 * (each % 7), against_parent=0.0002
            )
            for each in earlier
        },
        quality={
            dataset_id(each): Quality(now=-1 + 0.0002 * (number - each), norm_change=_NORMS)
            for each in earlier
        },
        capacity={
            each: HeadCapacity(
                free_share=free,
                input_directions=200,
                input_width=SPEC.widths[each],
                output_directions=128,
                output_width=SPEC.width,
            )
            for each in SPEC.modalities
        },
        recall_before=_recall(number, number + 400),
        evaluation={dataset_id(each): _recall(each, number) for each in learned},
    )


_NORMS = {"image": 0.01, "text": -0.02}


def _promotions(size: Size) -> Iterator[dict[str, Any]]:
    for number in range(1, size.versions + 1):
        yield {
            "model": MODEL,
            "generation": number,
            "version": number,
            "previous": number - 1 or None,
            "kind": "published",
            "reason": "published",
            "actor": "reconciler",
            "created_at": NOW - _age(number, size),
        }


def _events(size: Size) -> Iterator[dict[str, Any]]:
    """One for each job."""
    for number in range(1, size.jobs + 1):
        yield {
            "position": number,
            "owner": OWNER,
            "kind": f"job.{_state(number, size)}",
            "model": MODEL,
            "dataset": dataset_id(number),
            "job": job_id(number),
            "data": {},
            "created_at": NOW - _age(number, size),
        }
