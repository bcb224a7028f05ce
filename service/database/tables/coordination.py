"""Tables for the coordination of replicas."""

from sqlalchemy import Column, String, Table

from service.database.columns import Counter, UtcDateTime, metadata

# Leases of loops that one replica at a time runs for all.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("until", UtcDateTime, nullable=False),
)

# Folders in object storage that no row names, and when they were first seen.
orphans = Table(
    "orphans",
    metadata,
    Column("folder", String(255), primary_key=True),
    Column("seen_at", UtcDateTime, nullable=False),
)

# Outbox of the backup: a row for each change, so that concurrent changes of the same thing do not wait for each other.
backup_outbox = Table(
    "backup_outbox",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    # Of a version: model/number.
    Column("name", String(64), nullable=False),
)

# One row: the oldest revision whose services still work with these tables. Written by migrations, read by services that
# find a newer revision than theirs.
compatibility = Table(
    "compatibility",
    metadata,
    Column("oldest", String(32), primary_key=True),
)
