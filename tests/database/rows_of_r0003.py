"""What a service of the third release left in its database, of what later ones keep otherwise."""

import sqlalchemy as sa
from sqlalchemy import Connection

from tests.database.rows_of_r0001 import NOW

_SPEC = {"width": 8, "modalities": {"image": 4, "text": 3}}


def write_third_release(connection: Connection) -> None:
    """Models that were promoted three times: one answers, one was deleted, of one nothing is left."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    rows = [
        _model("live", 3),
        _model("deleted", 3, deleted_at=NOW),
        _model("gone", 3, deleted_at=NOW, swept_at=NOW),
        _model("new", 0),
    ]
    connection.execute(metadata.tables["models"].insert(), rows)
    promoted = [name for name in ("live", "deleted", "gone") for _ in range(3)]
    connection.execute(
        metadata.tables["promotions"].insert(),
        [_promotion(name, 1 + place % 3) for place, name in enumerate(promoted)],
    )


def _model(name: str, generation: int, **more: object) -> dict[str, object]:
    return {
        "name": name,
        "owner": "default",
        "spec": _SPEC,
        "policy": {"max_drift": 0.5},
        "policy_revision": 1,
        "head": min(generation, 1),
        "live_version": 1 if generation else None,
        "live_generation": generation,
        "mirrored_generation": generation,
        "created_at": NOW,
        "deleted_at": None,
        "swept_at": None,
        **more,
    }


def _promotion(model: str, generation: int) -> dict[str, object]:
    return {
        "model": model,
        "generation": generation,
        "version": 1,
        "kind": "published",
        "reason": "published",
        "actor": "reconciler",
        "created_at": NOW,
    }
