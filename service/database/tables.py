"""The tables as of the newest migration; a test compares the two.

First types of columns and indices, then the registry (models, datasets, jobs, versions), then what stands beside it: keys,
sessions, stored responses, uploads, events, webhooks, coordination of instances.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    column,
)

# Names for constraints, so that migrations can refer to them on both databases.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A time with time zone. SQLite stores none, so values are written and read as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert for the database. Raises ValueError without a time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert from the database, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class SanitizedText(TypeDecorator[str]):
    """Text from outside, such as the end of a log, without the NUL that PostgreSQL refuses."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def json_column(name: str, *, nullable: bool) -> Column[object]:
    """A JSON column; None is stored as NULL."""
    return Column(name, JSON(none_as_null=True), nullable=nullable)


# SQLite increments only columns of exactly this type.
Counter = BigInteger().with_variant(Integer, "sqlite")


def partial_index(
    name: str, where: ColumnElement[bool], *columns: str, is_unique: bool = False
) -> Index:
    """A partial index, of the rows that still need work."""
    return Index(name, *columns, unique=is_unique, sqlite_where=where, postgresql_where=where)


# `sequence` columns have the order of arrival; ids are public. `owner` is the tenant, in each table that is listed.

models = Table(
    "models",
    metadata,
    Column("name", String(48), primary_key=True),
    Column("owner", String(64), nullable=False),
    json_column("spec", nullable=False),
    json_column("gate", nullable=False),
    Column("gate_revision", Integer, nullable=False),
    # Number of the newest version; 0 before the first. Publishing is a compare-and-set on it.
    Column("head", Integer, nullable=False),
    Column("live_version", Integer, nullable=True),
    # Number of promotions.
    Column("live_generation", Integer, nullable=False),
    # Grows with each change of the content of live.json, `revised_at` is its time; `written_revision` is the one that
    # live.json has.
    Column("live_revision", Integer, nullable=False),
    Column("written_revision", Integer, nullable=False),
    Column("revised_at", UtcDateTime, nullable=True),
    # Trace context of the job or the request that caused this revision, if it is traced.
    Column("traceparent", String(55), nullable=True),
    # Which instance reconciles the model, while it is alive (`service.database.queries.instances`). It saves work; fences
    # keep the order.
    Column("lease_owner", String(64), nullable=True),
    # {modality: EncoderIdentity}: the encoder that the first dataset with a known one fixed.
    json_column("encoders", nullable=False),
    # {"model", "version"} that it was branched from.
    json_column("branched_from", nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime, nullable=True),
    # When the files of a deleted model were removed.
    Column("swept_at", UtcDateTime, nullable=True),
    Index(None, "owner", "name"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("model", String(48), ForeignKey("models.name"), nullable=False),
    Column("name", String(48), nullable=False),
    Column("pair_first", String(32), nullable=False),
    Column("pair_second", String(32), nullable=False),
    json_column("request", nullable=False),
    # Null while it is open, and after its job ended without a version: then it can be posted again.
    Column("fingerprint", String(64), nullable=True),
    # The same with digests of uploads in place of their addresses, which differ each time a file is sent; null if it names
    # no upload. It is valid as long as `fingerprint` is set.
    Column("content_fingerprint", String(64), nullable=True),
    Column("quarantine_reason", SanitizedText, nullable=True),
    json_column("manifest", nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    # Null while shards can be added; a sealed dataset has a job.
    Column("sealed_at", UtcDateTime, nullable=True),
    Column("deleted_at", UtcDateTime, nullable=True),
    # When its files were given up after it was unlearned: no version needs them.
    Column("swept_at", UtcDateTime, nullable=True),
    Index(None, "owner", "sequence"),
    Index(None, "model", "sequence"),
    UniqueConstraint("model", "fingerprint"),
    partial_index(
        "uq_datasets_model_content_fingerprint",
        column("fingerprint").is_not(None),
        "model",
        "content_fingerprint",
        is_unique=True,
    ),
    partial_index(
        "ix_datasets_unswept",
        and_(column("deleted_at").is_not(None), column("swept_at").is_(None)),
        "sequence",
    ),
)

jobs = Table(
    "jobs",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("model", String(48), ForeignKey("models.name"), nullable=False),
    # JobKind.
    Column("kind", String(16), nullable=False),
    # That it learns, unlearns or erases a row from; null for a merge.
    Column("dataset", String(32), ForeignKey("datasets.id"), nullable=True),
    # Copied, so that a list of jobs needs no datasets; for a merge, the version as `model@version`.
    Column("dataset_name", String(64), nullable=False),
    # VersionRef that a merge adds.
    json_column("merges", nullable=True),
    # ErasedRow; without its features once the job has ended.
    json_column("erases", nullable=True),
    # Its report is its only result.
    Column("dry_run", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(32), nullable=True),
    Column("message", SanitizedText, nullable=True),
    # The fence: every move increments it, and names the revision that it has read.
    Column("revision", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    # Attempts that were used before the last retry by a user.
    Column("attempts_before_retry", Integer, nullable=False),
    Column("parent_version", Integer, nullable=True),
    Column("version", Integer, nullable=True),
    json_column("progress", nullable=True),
    # Number of the newest request to prepare its dataset: results of an earlier one do not count.
    Column("preparation", Integer, nullable=False),
    # PrepareProgress of that request; then PreparedRows, what came of it; of a dry run, DatasetReport.
    json_column("prepare_progress", nullable=True),
    json_column("prepared", nullable=True),
    json_column("report", nullable=True),
    # EvaluationResult, of a dataset that is measured only.
    json_column("evaluation", nullable=True),
    # {"decision", "actor", "reason", "at"}: a user's decision about the candidate.
    json_column("approval", nullable=True),
    Column("cancel_requested", Boolean, nullable=False),
    # While it waits for the scheduler: since when, plus the offset of its priority. Jobs of an owner start in this order.
    Column("eligible_at", UtcDateTime, nullable=True),
    # Trace context of the request that created it, if that is traced: the parent of the job's spans.
    Column("traceparent", String(55), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state_changed_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    # Times of the current attempt, by the clock of this service: first seen running, last progress, first seen ended.
    Column("launched_at", UtcDateTime, nullable=True),
    Column("heard_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    Column("finished_at", UtcDateTime, nullable=True),
    # When the files of its attempts were removed.
    Column("swept_at", UtcDateTime, nullable=True),
    # Lists in order of arrival, with each filter. An operator lists the jobs of all owners.
    Index(None, "owner", "sequence"),
    Index(None, "owner", "state", "sequence"),
    Index(None, "state", "sequence"),
    Index(None, "model", "sequence"),
    Index(None, "model", "state", "sequence"),
    Index(None, "dataset"),
    # One job reads the rows of a dataset; others can unlearn it.
    partial_index(
        "uq_jobs_reading_dataset",
        column("kind").not_in(("unlearn", "erase", "merge")),
        "dataset",
        is_unique=True,
    ),
    # `finished_at` and not the state: both databases match a condition without parameters to a query.
    partial_index("ix_jobs_open", column("finished_at").is_(None), "model", "sequence"),
    # The first waiting job of each owner.
    partial_index(
        "ix_jobs_eligible",
        column("eligible_at").is_not(None),
        *("state", "owner", "eligible_at", "sequence"),
    ),
    partial_index(
        "ix_jobs_unswept",
        and_(column("finished_at").is_not(None), column("swept_at").is_(None)),
        "finished_at",
    ),
    # The last job of a model that has ended.
    partial_index("ix_jobs_ended", column("finished_at").is_not(None), "model", "finished_at"),
)

# Attempts of jobs.
attempts = Table(
    "attempts",
    metadata,
    Column("job", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("parent_version", Integer, nullable=True),
    # By the clock of this service: number assigned, first seen running, end noticed.
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    # AttemptOutcome.
    Column("outcome", String(16), nullable=True),
    Column("reason", String(32), nullable=True),
    Column("message", SanitizedText, nullable=True),
    # When its first progress arrived, and seconds between the points that are kept of it.
    Column("progress_since", UtcDateTime, nullable=True),
    Column("progress_interval", Float(53), nullable=True),
)

# Progress of attempts over time: the newest in each interval, until the files of the job are removed.
progress_points = Table(
    "progress_points",
    metadata,
    Column("job", String(32), ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    # Number of the interval, counted from the first progress.
    Column("interval", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    # ProgressPoint.
    json_column("figures", nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(48), ForeignKey("models.name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    # Null for a version that a branch copied.
    Column("job", String(32), ForeignKey("jobs.id"), nullable=True, unique=True),
    Column("attempt", Integer, nullable=False),
    Column("parent", Integer, nullable=True),
    # Copied from the manifest, so that lists and histories need no manifests, which grow with each dataset.
    # JobKind; of the dataset that it learned, else null, and of the one that it unlearned or the version that it
    # merged, the name alone.
    Column("kind", String(16), nullable=False),
    Column("dataset", String(32), nullable=True),
    Column("dataset_name", String(64), nullable=False),
    Column("pair_first", String(32), nullable=False),
    Column("pair_second", String(32), nullable=False),
    Column("mean_recall", Float(53), nullable=True),
    Column("max_drift", Float(53), nullable=True),
    # {modality: HeadCapacity}.
    json_column("capacity", nullable=False),
    # The model whose job made it, under the same number; null for this model's.
    Column("copied_from", String(48), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    # When its manifest was stored; only then can it be served or have a child.
    Column("stored_at", UtcDateTime, nullable=True),
    Column("retired_at", UtcDateTime, nullable=True),
    # When its files were given up, after it was retired: it had learned a dataset that was unlearned.
    Column("swept_at", UtcDateTime, nullable=True),
    # Digest of the manifest as it is stored.
    Column("manifest_sha256", String(64), nullable=False),
    # Large columns come last: SQLite reads a column by way of those before it.
    # FiguresByDataset: one document with rounded numbers, since a page of a history has thousands.
    json_column("figures", nullable=False),
    # {dataset: Recall}.
    json_column("evaluation", nullable=False),
    json_column("manifest", nullable=False),
    partial_index("ix_versions_unstored", column("stored_at").is_(None), "model", "number"),
    # The latest versions whose dataset had a modality.
    Index(None, "model", "pair_first", "number"),
    Index(None, "model", "pair_second", "number"),
)

promotions = Table(
    "promotions",
    metadata,
    Column("model", String(48), ForeignKey("models.name"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("previous", Integer, nullable=True),
    Column("kind", String(16), nullable=False),
    # The generation that a rollback returns to.
    Column("returns_to", Integer, nullable=True),
    Column("reason", SanitizedText, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

responses = Table(
    "idempotency",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("route", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("location", String(255), nullable=True),
    json_column("body", nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    json_column("scopes", nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", UtcDateTime, nullable=True),
    Column("revoked_at", UtcDateTime, nullable=True),
    Column("last_used_at", UtcDateTime, nullable=True),
)

# Sessions of the page, each started with a key or a token.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(32), primary_key=True),
    # Null: the operator, who sees all owners.
    Column("owner", String(64), nullable=True, index=True),
    Column("name", String(128), nullable=False),
    json_column("scopes", nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    # The key that it was started with: the session ends when that is revoked. Null: the operator's key or a token.
    Column("parent", String(32), ForeignKey("api_keys.id"), nullable=True),
    # The browser, as it calls itself.
    Column("agent", SanitizedText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False, index=True),
    Column("revoked_at", UtcDateTime, nullable=True),
    Column("last_used_at", UtcDateTime, nullable=True),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", String(128), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=True),
    Column("state", String(16), nullable=False),
    # Name of its object: each request that sends it writes one of its own, and the first that ends is the file.
    Column("file", String(32), nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("completed_at", UtcDateTime, nullable=True),
)

# Which datasets name an upload: it is kept while one of them may still be read.
upload_uses = Table(
    "upload_uses",
    metadata,
    Column("upload", String(32), ForeignKey("uploads.id"), primary_key=True),
    Column("dataset", String(32), ForeignKey("datasets.id"), primary_key=True, index=True),
)


events = Table(
    "events",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    # Its position in the feed; null until it is numbered (`service.database.queries.events.number`).
    Column("position", BigInteger, nullable=True, unique=True),
    Column("owner", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("model", String(48), nullable=False),
    Column("dataset", String(32), nullable=True),
    Column("job", String(32), nullable=True),
    Column("version", Integer, nullable=True),
    json_column("data", nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Index(None, "owner", "position"),
    Index(None, "model", "position"),
    Index(None, "job", "position"),
)

# One row, locked while events are numbered. It only grows, also when old events are removed.
event_positions = Table(
    "event_positions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("newest", BigInteger, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("url", String(1024), nullable=False),
    # In the form of `service.events.webhook_secrets`; signs every delivery.
    Column("secret", String(128), nullable=False),
    json_column("kinds", nullable=False),
    Column("model", String(48), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disabled_at", UtcDateTime, nullable=True),
    Column("disabled_reason", SanitizedText, nullable=True),
    # Since when every attempt has failed, and until when deliveries pause.
    Column("failing_since", UtcDateTime, nullable=True),
    Column("rests_until", UtcDateTime, nullable=True),
    # Which instance sends to it: one at a time.
    Column("lease_owner", String(64), nullable=True),
    Column("lease_until", UtcDateTime, nullable=True),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("webhook", String(32), ForeignKey("webhooks.id"), nullable=False),
    json_column("payload", nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcDateTime, nullable=False),
    Column("status", Integer, nullable=True),
    Column("error", SanitizedText, nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("delivered_at", UtcDateTime, nullable=True),
    Column("failed_at", UtcDateTime, nullable=True),
    Index(None, "webhook", "sequence"),
    partial_index(
        "ix_deliveries_due",
        and_(column("delivered_at").is_(None), column("failed_at").is_(None)),
        "webhook",
        "next_at",
    ),
)


# The order in which owners were last served by the scheduler, by the state in which their jobs wait. The row of all
# owners (`*`) has the newest number, and is locked while jobs are admitted.
admissions = Table(
    "admissions",
    metadata,
    Column("state", String(16), primary_key=True),
    Column("owner", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

# Leases of loops that one instance at a time runs for all, and one of each instance, for all models that it leases.
leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("until", UtcDateTime, nullable=False),
)

# Folders and blobs in object storage that nothing names, and when they were first seen so.
orphans = Table(
    "orphans",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("seen_at", UtcDateTime, nullable=False),
    # It is being removed, and can no longer be named.
    Column("doomed", Boolean, nullable=False),
)

# One row: the driver on the cluster, which prepares datasets and may train attempts (`service.jobs.driver`).
drivers = Table(
    "drivers",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # Each process has the next number; a change names the number that it has read.
    Column("number", Integer, nullable=False),
    # By the clock of this service: number assigned, first seen running, seen ended.
    Column("began_at", UtcDateTime, nullable=False),
    Column("launched_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    # How many ended early in a row.
    Column("failures", Integer, nullable=False),
    # Since when the launcher has not responded.
    Column("unavailable_since", UtcDateTime, nullable=True),
    # Why none runs, for the jobs that wait for it.
    Column("message", SanitizedText, nullable=True),
)

# Outbox of the backup: a row for each change, so that concurrent changes of the same thing do not wait for each other.
backup_outbox = Table(
    "backup_outbox",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    # For a version: model/number.
    Column("name", String(64), nullable=False),
)

# One row, written by migrations. `oldest`: the oldest revision whose services still work with these tables, read by
# services that find a newer revision than theirs. `sha256`: digest of the tables as the release declared them, read by
# services that find their own revision.
compatibility = Table(
    "compatibility",
    metadata,
    Column("oldest", String(32), primary_key=True),
    Column("sha256", String(64), nullable=False),
)
