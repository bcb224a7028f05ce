"""A control plane that loses its database, and gets another one from object storage."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from service.database.engine import Database
from service.database.migrations import upgrade
from service.database.queries.backup import LEFT_OUT, OF_THE_MANIFEST
from service.database.tables import metadata
from service.maintenance.rebuild import Findings, Rebuild, Verify
from tests.fakes.control_plane import ControlPlane

Rows = dict[str, list[dict[str, Any]]]

# Tables that no bucket holds, or that are meaningless in another database.
NOT_KEPT = frozenset(
    {
        "admissions",
        "api_keys",
        "sessions",
        "compatibility",
        "deliveries",
        "event_positions",
        "events",
        "idempotency",
        "leases",
        "orphans",
        "drivers",
        "progress_points",
        "backup_outbox",
        "webhooks",
    }
)
# Columns that records leave out, except those that manifests bring back.
MAY_DIFFER = {table: columns - OF_THE_MANIFEST for table, columns in LEFT_OUT.items()} | {
    "jobs": LEFT_OUT["jobs"] | {"message"}
}


def everything(database: Database) -> Rows:
    """All rows that a rebuild must bring back, without the columns that may differ."""
    found: Rows = {}
    with database.read() as connection:
        for table in metadata.sorted_tables:
            if table.name in NOT_KEPT:
                continue
            query = select(table).order_by(*table.primary_key.columns)
            hidden = MAY_DIFFER.get(table.name, frozenset())
            found[table.name] = [
                {name: value for name, value in row.items() if name not in hidden}
                for row in connection.execute(query).mappings()
            ]
    return found


def wreck(database: Database) -> None:
    """Drop all tables."""
    with database.write() as connection:
        metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")


def rebuild(
    plane: ControlPlane,
    verify: Verify = "full",
    signing_key: Ed25519PrivateKey | None = None,
) -> Findings:
    """Rebuild the plane's empty database from the store alone."""
    upgrade(plane.context.database)
    work = Rebuild(plane.store, verify, signing_key, plane.clock(), lambda _: None)
    work.fill(plane.context.database, work.read())
    return work.findings
