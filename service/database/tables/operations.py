"""Tables beside the registry: keys, sessions, stored responses, uploads, events, webhooks, coordination of instances."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    and_,
    column,
)

from service.database.columns import (
    Counter,
    SanitizedText,
    UtcDateTime,
    json_column,
    metadata,
    partial_index,
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
    # Of a version: model/number.
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
