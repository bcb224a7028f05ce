"""What a service of the first release left in its database: every table, a row or two."""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
_SPEC = {"width": 8, "modalities": {"image": 4, "text": 3}}
_PAIR = {"first": "image", "second": "text"}
_RECALL = {"rows": 10, "at_1": 0.5, "at_5": 0.6, "at_10": 0.7, "accuracy": None}
_FILE = {"sha256": "0" * 64, "bytes": 1}


def write_first_release(connection: Connection) -> None:
    """Two datasets of one model: the first became a version and was promoted twice."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    for table, rows in _ROWS.items():
        connection.execute(metadata.tables[table].insert(), rows)


def _dataset(number: int) -> dict[str, object]:
    request = {
        "model": "scenes",
        "name": "one",
        "pair": _PAIR,
        "shards": [{"uri": f"s3://bucket/{number}", "sha256": None}],
        "evaluation_shards": [],
    }
    return {
        "id": f"ds-{number:012}",
        "model": "scenes",
        "name": "one",
        "pair_first": "image",
        "pair_second": "text",
        "request": request,
        "fingerprint": f"{number:064}",
        "created_at": NOW,
    }


def _job(number: int, state: str, finished_at: datetime | None) -> dict[str, object]:
    return {
        "id": f"job-{number:012}",
        "model": "scenes",
        "dataset": f"ds-{number:012}",
        "state": state,
        "attempt": 1,
        "attempts_before_retry": 0,
        "submission_id": f"job-{number:012}-a1",
        "parent_version": None if number == 1 else 1,
        "version": number,
        "cancel_requested": False,
        "created_at": NOW,
        "state_changed_at": NOW,
        "finished_at": finished_at,
    }


_MANIFEST = {
    "model": "scenes",
    "version": 1,
    "parent": None,
    "job": f"job-{1:012}",
    "attempt": 1,
    "dataset": f"ds-{1:012}",
    "spec": _SPEC,
    "code_version": "0.1.0",
    "created_at": NOW.isoformat(),
    "files": {"heads.safetensors": _FILE},
    "learned": [
        {
            "dataset": f"ds-{1:012}",
            "name": "one",
            "pair": _PAIR,
            "rows": 16,
            "version": 1,
            "moments": _FILE,
            "shard_digests": ["0" * 64],
        }
    ],
    "report": {
        "final_loss": 1.0,
        "updates": 3,
        "ranks": 1,
        "evaluation": {f"ds-{1:012}": _RECALL},
    },
}


def _promotion(generation: int, actor: str) -> dict[str, object]:
    return {
        "model": "scenes",
        "generation": generation,
        "version": 1,
        "previous": None,
        "reason": "published",
        "actor": actor,
        "created_at": NOW,
    }


_ROWS: dict[str, list[dict[str, object]]] = {
    "models": [
        {
            "name": "scenes",
            "spec": _SPEC,
            "head": 1,
            "live_version": 1,
            "live_generation": 2,
            "mirrored_generation": 2,
            "created_at": NOW,
        }
    ],
    "datasets": [_dataset(1), _dataset(2)],
    "jobs": [_job(1, "published", NOW), _job(2, "running", None)],
    "versions": [
        {
            "model": "scenes",
            "number": 1,
            "job": f"job-{1:012}",
            "attempt": 1,
            "parent": None,
            "manifest": _MANIFEST,
            "created_at": NOW,
            "stored_at": NOW,
        }
    ],
    "promotions": [_promotion(1, "reconciler"), _promotion(2, "user")],
    "idempotency": [
        {
            "key": "k",
            "route": "POST /v1/models",
            "fingerprint": "f",
            "status": 201,
            "location": "/v1/models/scenes",
            "body": {"name": "scenes"},
            "created_at": NOW,
        }
    ],
}
