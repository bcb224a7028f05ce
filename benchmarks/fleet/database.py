"""A database with many running jobs, one of each model, written without the steps before."""

from datetime import datetime
from typing import Any

from sqlalchemy import insert

from cmcl.contract.dataset import DatasetManifest, Shard
from cmcl.contract.gate import Gate
from cmcl.contract.job import JobSpec
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from service.database.engine import Database
from service.database.tables import attempts, datasets, jobs, models
from service.states import JobState

SPEC = ModelSpec(modalities={"image": 4, "text": 3})
PAIR = ModalityPair(first="image", second="text")


def model_name(number: int) -> str:
    """Return the name of a model."""
    return f"m{number:05d}"


def job_id(number: int) -> str:
    """Return the id of its job."""
    return f"job-{number:012x}"


def manifest(number: int) -> DatasetManifest:
    """Return the manifest of its dataset."""
    shard = Shard(uri=f"s3://captures/{number}.parquet", sha256=f"{number:064x}", bytes=1, rows=1)
    return DatasetManifest(
        dataset=f"ds-{number:012x}",
        model=model_name(number),
        name="one",
        pair=PAIR,
        shards=(shard,),
    )


def job_spec(number: int) -> JobSpec:
    """Return the specification of its attempt."""
    return JobSpec(
        job=job_id(number),
        attempt=1,
        model=model_name(number),
        version=1,
        parent=None,
        spec=SPEC,
        dataset=manifest(number),
    )


def fill(database: Database, running: int, now: datetime) -> None:
    """Insert `running` models, each with one running job."""
    numbers = range(running)
    with database.write() as connection:
        connection.execute(insert(models), [model_row(number, now) for number in numbers])
        connection.execute(insert(datasets), [_dataset(number, now) for number in numbers])
        connection.execute(insert(jobs), [_job(number, now) for number in numbers])
        connection.execute(insert(attempts), [_attempt(number, now) for number in numbers])


def model_row(number: int, now: datetime) -> dict[str, Any]:
    """Return the row of a model without versions."""
    return {
        "name": model_name(number),
        "owner": "default",
        "spec": SPEC.model_dump(mode="json"),
        "gate": Gate().model_dump(mode="json"),
        "gate_revision": 1,
        "head": 0,
        "live_generation": 0,
        "live_revision": 0,
        "mirrored_revision": 0,
        "encoders": {},
        "created_at": now,
    }


def _dataset(number: int, now: datetime) -> dict[str, Any]:
    found = manifest(number)
    return {
        "id": found.dataset,
        "owner": "default",
        "model": found.model,
        "name": found.name,
        "pair_first": PAIR.first,
        "pair_second": PAIR.second,
        "request": {"shards": [{"uri": found.shards[0].uri}]},
        "fingerprint": f"f{number}",
        "manifest": found.model_dump(mode="json"),
        "created_at": now,
        "sealed_at": now,
    }


def _job(number: int, now: datetime) -> dict[str, Any]:
    return {
        "id": job_id(number),
        "owner": "default",
        "model": model_name(number),
        "dataset": manifest(number).dataset,
        "dataset_name": "one",
        "state": JobState.RUNNING,
        "revision": 4,
        "attempt": 1,
        "attempts_before_retry": 0,
        "version": 1,
        "kind": "learn",
        "dry_run": False,
        "preparation": 1,
        "cancel_requested": False,
        "created_at": now,
        "started_at": now,
        "launched_at": now,
        "heard_at": now,
        "state_changed_at": now,
    }


def _attempt(number: int, now: datetime) -> dict[str, Any]:
    return {"job": job_id(number), "number": 1, "created_at": now, "started_at": now}
