"""The tables, as the newest migration leaves them; a test compares the two."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    and_,
    column,
)

from service.database.columns import (
    Counter,
    UtcDateTime,
    Words,
    index_of_some,
    json_column,
    metadata,
)

# `sequence` columns keep the order of arrival; the ids are what the world sees. `owner` is the
# tenant: it stands in each table that is listed by itself.

models = Table(
    "models",
    metadata,
    Column("name", String(48), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    json_column("spec", nullable=False),
    json_column("policy", nullable=False),
    Column("policy_revision", Integer, nullable=False),
    # Number of the newest version; 0 before the first. Publishing is a compare-and-set on it.
    Column("head", Integer, nullable=False),
    Column("live_version", Integer, nullable=True),
    # Grows with each promotion; `mirrored_generation` is the one that live.json shows.
    Column("live_generation", Integer, nullable=False),
    Column("mirrored_generation", Integer, nullable=False),
    # Which service looks after the model, and until when. It saves work; the fence keeps order.
    Column("lease_owner", String(64), nullable=True),
    Column("lease_until", UtcDateTime, nullable=True),
    # {"model", "version"} of which it is a branch.
    json_column("branched_from", nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime, nullable=True),
    # When the files of a deleted one were given up.
    Column("swept_at", UtcDateTime, nullable=True),
)

datasets = Table(
    "datasets",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("model", String(48), ForeignKey("models.name"), nullable=False, index=True),
    Column("name", String(48), nullable=False),
    Column("pair_first", String(32), nullable=False),
    Column("pair_second", String(32), nullable=False),
    json_column("request", nullable=False),
    # Null while it is open, and once its job ended without a version: then it can be posted again.
    Column("fingerprint", String(64), nullable=True),
    Column("quarantine_reason", Words, nullable=True),
    json_column("manifest", nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    # Null while shards can still be added; a dataset has a job from then on.
    Column("sealed_at", UtcDateTime, nullable=True),
    Column("deleted_at", UtcDateTime, nullable=True),
    # When what only its job needed was given up: from then on the job cannot be carried on.
    Column("swept_at", UtcDateTime, nullable=True),
    UniqueConstraint("model", "fingerprint"),
    index_of_some("ix_datasets_unswept", column("swept_at").is_(None), "sequence"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("model", String(48), ForeignKey("models.name"), nullable=False),
    Column("dataset", String(32), ForeignKey("datasets.id"), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("reason", String(32), nullable=True),
    Column("message", Words, nullable=True),
    # The fence: it grows with every move, and every move names the revision that it has seen.
    Column("revision", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    # Attempts that were used up before a user's retry gave the job new ones.
    Column("attempts_before_retry", Integer, nullable=False),
    Column("submission_id", String(64), nullable=True),
    Column("parent_version", Integer, nullable=True),
    Column("version", Integer, nullable=True),
    json_column("progress", nullable=True),
    # {"decision", "actor", "reason", "at"}: what a person said about the candidate.
    json_column("approval", nullable=True),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state_changed_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    # Of the present attempt, by our own clock: when it was first seen to run, when it was last
    # heard of, and when it was first seen to have ended.
    Column("launched_at", UtcDateTime, nullable=True),
    Column("heard_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    Column("finished_at", UtcDateTime, nullable=True),
    # When what its attempts left in object storage was removed.
    Column("swept_at", UtcDateTime, nullable=True),
    Index(None, "model", "state", "sequence"),
    # `finished_at` and not the state: a condition without parameters is one that both databases
    # recognize in a query.
    index_of_some("ix_jobs_open", column("finished_at").is_(None), "model", "sequence"),
    index_of_some(
        "ix_jobs_unswept",
        and_(column("finished_at").is_not(None), column("swept_at").is_(None)),
        "finished_at",
    ),
)

versions = Table(
    "versions",
    metadata,
    Column("model", String(48), ForeignKey("models.name"), primary_key=True),
    Column("number", Integer, primary_key=True),
    # Null for a version that a branch has from its source.
    Column("job", String(32), ForeignKey("jobs.id"), nullable=True, unique=True),
    Column("attempt", Integer, nullable=False),
    Column("parent", Integer, nullable=True),
    json_column("manifest", nullable=False),
    # {dataset: Recall}: the manifest's evaluation, so that a matrix needs no manifests.
    json_column("evaluation", nullable=False),
    # The model whose version of the same number it is a copy of.
    Column("copied_from", String(48), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    # When its files were in place; only then can it answer or have a child.
    Column("stored_at", UtcDateTime, nullable=True),
    Column("retired_at", UtcDateTime, nullable=True),
    index_of_some("ix_versions_unstored", column("stored_at").is_(None), "model", "number"),
)

promotions = Table(
    "promotions",
    metadata,
    Column("model", String(48), ForeignKey("models.name"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("previous", Integer, nullable=True),
    Column("kind", String(16), nullable=False),
    # The generation that a roll back from here returns to.
    Column("returns_to", Integer, nullable=True),
    Column("reason", Words, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

answers = Table(
    "idempotency",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("route", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    # Null while the request is being answered.
    Column("status", Integer, nullable=True),
    Column("location", String(255), nullable=True),
    json_column("body", nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
)

events = Table(
    "events",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    # Its place for listeners; null until it is numbered (`service.database.queries.events.number`).
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

# One row. Whoever numbers events holds it; it only grows, also when old events are removed.
event_positions = Table(
    "event_positions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("newest", BigInteger, nullable=False),
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

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("filename", String(128), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=True),
    # The client writes to object storage itself, through a signed address.
    Column("direct", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    # The fence of completing: each attempt has the next number, and writes a file of its own.
    Column("attempt", Integer, nullable=False),
    # Until when the present attempt keeps others from trying.
    Column("lease_until", UtcDateTime, nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("completed_at", UtcDateTime, nullable=True),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload", String(32), ForeignKey("uploads.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
)

# Which datasets name an upload: it is kept while one of them may still be read.
upload_uses = Table(
    "upload_uses",
    metadata,
    Column("upload", String(32), ForeignKey("uploads.id"), primary_key=True),
    Column("dataset", String(32), ForeignKey("datasets.id"), primary_key=True, index=True),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("url", String(1024), nullable=False),
    # In the clear, because every delivery is signed with it.
    Column("secret", String(128), nullable=False),
    json_column("kinds", nullable=False),
    Column("model", String(48), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disabled_at", UtcDateTime, nullable=True),
    Column("disabled_reason", Words, nullable=True),
    # Since when every attempt has failed, and until when it is left alone for that.
    Column("failing_since", UtcDateTime, nullable=True),
    Column("rests_until", UtcDateTime, nullable=True),
    # Who sends to it at the moment: one at a time.
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
    Column("error", Words, nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("delivered_at", UtcDateTime, nullable=True),
    Column("failed_at", UtcDateTime, nullable=True),
    Index(None, "webhook", "sequence"),
    index_of_some(
        "ix_deliveries_due",
        and_(column("delivered_at").is_(None), column("failed_at").is_(None)),
        "webhook",
        "next_at",
    ),
)

preflights = Table(
    "preflights",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("owner", String(64), nullable=False),
    Column("model", String(48), ForeignKey("models.name"), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    json_column("request", nullable=False),
    Column("state", String(16), nullable=False),
    # The fence, as of jobs; and the number of the attempt that is made, or was made last.
    Column("revision", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    json_column("result", nullable=True),
    Column("message", Words, nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state_changed_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    Column("finished_at", UtcDateTime, nullable=True, index=True),
    index_of_some("ix_preflights_open", column("finished_at").is_(None), "model", "sequence"),
)

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
