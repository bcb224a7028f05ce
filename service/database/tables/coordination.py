"""What services tell each other: who does what at the moment, and what they have noticed."""

from sqlalchemy import Column, String, Table

from service.database.columns import Counter, UtcDateTime, metadata

# Work that one service at a time does for all.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("until", UtcDateTime, nullable=False),
)

# Folders in object storage that no row speaks of, since when they were seen.
orphans = Table(
    "orphans",
    metadata,
    Column("folder", String(255), primary_key=True),
    Column("seen_at", UtcDateTime, nullable=False),
)

# What was changed, and is not recorded in object storage yet: a row for each change, so that those who
# change the same thing at once need not wait for each other.
backup_outbox = Table(
    "backup_outbox",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    # Of a version: model/number.
    Column("name", String(64), nullable=False),
)

# One row: the oldest revision of these tables whose services still work with them. Written by
# migrations, read by services that find a newer revision than they know.
compatibility = Table(
    "compatibility",
    metadata,
    Column("oldest", String(32), primary_key=True),
)
