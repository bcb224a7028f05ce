"""The tables, as the newest migration leaves them; a test compares the two."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

# Constraints have names of their own, so that later migrations can speak of them everywhere.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. SQLite keeps no time zone, so UTC is what is written and what is assumed."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Into the database; a moment without a time zone is refused."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone cannot be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Out of the database, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Words(TypeDecorator[str]):
    """What others said about themselves. PostgreSQL takes no NUL, and the end of a log may have one."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Into the database."""
        return value if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _json(name: str, *, nullable: bool) -> Column[object]:
    return Column(name, JSON(none_as_null=True), nullable=nullable)


# `sequence` columns keep the order of arrival; the ids are what the world sees.

models = Table(
    "models",
    metadata,
    Column("name", String(48), primary_key=True),
    _json("spec", nullable=False),
    # Number of the newest version; 0 before the first. Publishing is a compare-and-set on it.
    Column("head", Integer, nullable=False),
    Column("live_version", Integer, nullable=True),
    # Grows with each promotion; `mirrored_generation` is the one that live.json shows.
    Column("live_generation", Integer, nullable=False),
    Column("mirrored_generation", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("model", String(48), ForeignKey("models.name"), nullable=False, index=True),
    Column("name", String(48), nullable=False),
    Column("pair_first", String(32), nullable=False),
    Column("pair_second", String(32), nullable=False),
    _json("request", nullable=False),
    # Null once its job ended without a version, so that the same dataset can be posted again.
    Column("fingerprint", String(64), nullable=True),
    Column("quarantine_reason", Words, nullable=True),
    _json("manifest", nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("model", "fingerprint"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("model", String(48), ForeignKey("models.name"), nullable=False),
    Column("dataset", String(32), ForeignKey("datasets.id"), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("reason", String(32), nullable=True),
    Column("message", Words, nullable=True),
    # The fence: every move names the attempt that it believes in.
    Column("attempt", Integer, nullable=False),
    # Attempts that were used up before a user's retry gave the job new ones.
    Column("attempts_before_retry", Integer, nullable=False),
    Column("submission_id", String(64), nullable=True),
    Column("parent_version", Integer, nullable=True),
    Column("version", Integer, nullable=True),
    _json("progress", nullable=True),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state_changed_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    Column("finished_at", UtcDateTime, nullable=True),
    Index(None, "model", "state"),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(48), ForeignKey("models.name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("job", String(32), ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("attempt", Integer, nullable=False),
    Column("parent", Integer, nullable=True),
    _json("manifest", nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # When its files were in place; only then can it answer or have a child.
    Column("stored_at", UtcDateTime, nullable=True),
)

promotions = Table(
    "promotions",
    metadata,
    Column("model", String(48), ForeignKey("models.name"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("previous", Integer, nullable=True),
    Column("reason", Text, nullable=False),
    Column("actor", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

answers = Table(
    "idempotency",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("route", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("location", String(255), nullable=True),
    _json("body", nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
