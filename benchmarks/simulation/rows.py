"""The database at the beginning of a simulation: models of several owners, with running and waiting jobs.

Written without the steps before, as they are after hours of load: each model has one job in flight or in line for the
cluster, its next eight are prepared, and the others are queued.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import insert

from benchmarks.fleet.database import PAIR, SPEC, model_row
from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.job import JobSpec
from service.database.engine import Database
from service.database.queries.preparations import MOST_OF_MODEL
from service.database.tables import attempts, datasets, jobs, models
from service.states import JobState

_CHUNK = 5_000
_EARLIER = timedelta(hours=1)


@dataclass(frozen=True)
class Load:
    """Numbers at the beginning. Half of the models are the first owner's; the running jobs are spread evenly."""

    models: int = 10_000
    running: int = 1_000
    queued: int = 100_000
    owners: int = 10

    @property
    def jobs_of_model(self) -> int:
        """How many jobs a model has, the running one included."""
        return max(1, self.queued // self.models)

    def owner(self, model: int) -> str:
        """The owner of a model."""
        others = self.owners - 1
        is_large = others == 0 or model % 2 == 0
        return "owner-0" if is_large else f"owner-{1 + (model // 2) % others}"

    def running_models(self) -> list[int]:
        """The models with a running job, in turns of the owners."""
        by_owner: dict[str, list[int]] = {}
        for model in range(self.models):
            by_owner.setdefault(self.owner(model), []).append(model)
        turns = (
            owned[turn]
            for turn in range(self.models)
            for owned in by_owner.values()
            if turn < len(owned)
        )
        return list(islice(turns, self.running))


def model_name(number: int) -> str:
    """Return the name of a model."""
    return f"m{number:06d}"


def job_id(model: int, number: int) -> str:
    """Return the id of the `number`-th job of a model."""
    return f"job-{model:06x}{number:06x}"


def first_spec(model: int) -> JobSpec:
    """Return the specification of the attempt that runs for a model at the beginning."""
    return JobSpec(
        job=job_id(model, 0),
        attempt=1,
        model=model_name(model),
        version=1,
        parent=None,
        spec=SPEC,
        dataset=_manifest(model, 0),
    )


def fill(database: Database, load: Load, now: datetime) -> None:
    """Insert all rows."""
    running = frozenset(load.running_models())
    _insert(database, models, (_model(load, number, now) for number in range(load.models)))
    numbers = [(m, n) for n in range(load.jobs_of_model) for m in range(load.models)]
    _insert(database, datasets, (_dataset(load, *each, now) for each in numbers))
    rows = (_job(load, m, n, now, is_running=m in running) for m, n in numbers)
    _insert(database, jobs, rows)
    begun = (
        {"job": job_id(model, 0), "number": 1, "created_at": now, "started_at": now}
        for model in sorted(running)
    )
    _insert(database, attempts, begun)


def _insert(database: Database, table: Any, rows: Iterator[dict[str, Any]]) -> None:
    while some := list(islice(rows, _CHUNK)):
        with database.write() as connection:
            connection.execute(insert(table), some)


def _model(load: Load, number: int, now: datetime) -> dict[str, Any]:
    about = {"name": model_name(number), "owner": load.owner(number)}
    return {**model_row(number, now - _EARLIER), **about}


def _manifest(model: int, number: int) -> DatasetManifest:
    shard = Shard(
        uri=f"s3://captures/{model}-{number}.parquet",
        sha256=f"{model:032x}{number:032x}",
        bytes=1,
        rows=1,
    )
    return DatasetManifest(
        dataset=f"ds-{model:06x}{number:06x}",
        model=model_name(model),
        name=f"data-{number}",
        pair=PAIR,
        shards=(shard,),
    )


def _dataset(load: Load, model: int, number: int, now: datetime) -> dict[str, Any]:
    manifest = _manifest(model, number)
    return {
        "id": manifest.dataset,
        "owner": load.owner(model),
        "model": manifest.model,
        "name": manifest.name,
        "pair_first": PAIR.first,
        "pair_second": PAIR.second,
        "request": {
            "model": manifest.model,
            "name": manifest.name,
            "pair": PAIR.model_dump(mode="json"),
            "shards": [{"uri": manifest.shards[0].uri}],
        },
        "fingerprint": f"{model}-{number}",
        "manifest": manifest.model_dump(mode="json") if number <= MOST_OF_MODEL else None,
        "created_at": now - _EARLIER,
        "sealed_at": now - _EARLIER,
    }


def _job(load: Load, model: int, number: int, now: datetime, *, is_running: bool) -> dict[str, Any]:
    is_first = number == 0
    prepared = MOST_OF_MODEL if is_running else MOST_OF_MODEL - 1
    state = JobState.PREPARED if number <= prepared else JobState.QUEUED
    began = now if is_first and is_running else None
    if began is not None:
        state = JobState.RUNNING
    waits = is_first and not is_running
    return {
        "id": job_id(model, number),
        "owner": load.owner(model),
        "model": model_name(model),
        "dataset": f"ds-{model:06x}{number:06x}",
        "dataset_name": f"data-{number}",
        "state": state,
        "revision": 4,
        "attempt": 0 if began is None else 1,
        "attempts_before_retry": 0,
        "version": None if began is None else 1,
        "kind": "learn",
        "dry_run": False,
        "preparation": 0 if state == JobState.QUEUED else 1,
        "cancel_requested": False,
        "eligible_at": now - _EARLIER + timedelta(seconds=model / 100) if waits else None,
        "created_at": now - _EARLIER,
        "started_at": began,
        "launched_at": began,
        "heard_at": began,
        "state_changed_at": began or now - _EARLIER,
    }
