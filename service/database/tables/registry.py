"""Tables of models, datasets, jobs, versions, promotions, canaries and pre-flights."""

from sqlalchemy import (
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
    SanitizedText,
    UtcDateTime,
    json_column,
    metadata,
    partial_index,
)

# `sequence` columns have the order of arrival; ids are public. `owner` is the tenant, in each table that is listed.

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
    # Number of promotions.
    Column("live_generation", Integer, nullable=False),
    # Grows with each change of the content of live.json, `revised_at` is its time; `mirrored_revision` is the one that
    # live.json has.
    Column("live_revision", Integer, nullable=False),
    Column("mirrored_revision", Integer, nullable=False),
    Column("revised_at", UtcDateTime, nullable=True),
    # Which replica reconciles the model, and until when. It saves work; fences keep the order.
    Column("lease_owner", String(64), nullable=True),
    Column("lease_until", UtcDateTime, nullable=True),
    # {"model", "version"} that it was branched from.
    json_column("branched_from", nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime, nullable=True),
    # When the files of a deleted model were removed.
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
    # When the files that only its job needed were given up: the job cannot continue after that.
    Column("swept_at", UtcDateTime, nullable=True),
    UniqueConstraint("model", "fingerprint"),
    partial_index(
        "uq_datasets_model_content_fingerprint",
        column("fingerprint").is_not(None),
        "model",
        "content_fingerprint",
        is_unique=True,
    ),
    partial_index("ix_datasets_unswept", column("swept_at").is_(None), "sequence"),
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
    Column("message", SanitizedText, nullable=True),
    # The fence: every move increments it, and names the revision that it has read.
    Column("revision", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    # Attempts that were used before the last retry by a user.
    Column("attempts_before_retry", Integer, nullable=False),
    Column("submission_id", String(64), nullable=True),
    Column("parent_version", Integer, nullable=True),
    Column("version", Integer, nullable=True),
    json_column("progress", nullable=True),
    # {"decision", "actor", "reason", "at"}: a user's decision about the candidate.
    json_column("approval", nullable=True),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state_changed_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    # Of the current attempt, by the clock of this service: first seen running, last progress, first seen ended.
    Column("launched_at", UtcDateTime, nullable=True),
    Column("heard_at", UtcDateTime, nullable=True),
    Column("ended_at", UtcDateTime, nullable=True),
    Column("finished_at", UtcDateTime, nullable=True),
    # When the files of its attempts were removed.
    Column("swept_at", UtcDateTime, nullable=True),
    Index(None, "model", "state", "sequence"),
    # `finished_at` and not the state: both databases match a condition without parameters to a query.
    partial_index("ix_jobs_open", column("finished_at").is_(None), "model", "sequence"),
    partial_index(
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
    # Null for a version that a branch copied.
    Column("job", String(32), ForeignKey("jobs.id"), nullable=True, unique=True),
    Column("attempt", Integer, nullable=False),
    Column("parent", Integer, nullable=True),
    # Copied from the manifest, so that a list needs no manifests.
    Column("dataset", String(32), nullable=False),
    Column("dataset_name", String(48), nullable=False),
    json_column("manifest", nullable=False),
    # {dataset: Recall}, copied from the manifest, so that a matrix needs no manifests.
    json_column("evaluation", nullable=False),
    # The model from which it was copied, under the same number.
    Column("copied_from", String(48), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    # When its files were stored; only then can it be served or have a child.
    Column("stored_at", UtcDateTime, nullable=True),
    Column("retired_at", UtcDateTime, nullable=True),
    partial_index("ix_versions_unstored", column("stored_at").is_(None), "model", "number"),
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

# Canaries. Observations are stored under the revision of live.json, so a canary that changes ends, and continues under
# the next revision.
trials = Table(
    "trials",
    metadata,
    Column("model", String(48), ForeignKey("models.name"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    # CanaryPlan: share, shadow, rule.
    json_column("plan", nullable=False),
    Column("reason", SanitizedText, nullable=False),
    Column("actor", String(128), nullable=False),
    # When the version became the canary, whatever changed since.
    Column("began_at", UtcDateTime, nullable=False),
    # Observed: the sum of the replicas' observations.
    json_column("observed", nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    Column("outcome", String(16), nullable=True),
    Column("ended_because", SanitizedText, nullable=True),
    # When the observations were removed.
    Column("swept_at", UtcDateTime, nullable=True),
    partial_index("ix_trials_open", column("ended_at").is_(None), "model", is_unique=True),
    partial_index(
        "ix_trials_unswept",
        and_(column("ended_at").is_not(None), column("swept_at").is_(None)),
        "ended_at",
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
    # The fence, as for jobs; and the number of the current or last attempt.
    Column("revision", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    json_column("result", nullable=True),
    Column("message", SanitizedText, nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state_changed_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime, nullable=True),
    Column("finished_at", UtcDateTime, nullable=True, index=True),
    partial_index("ix_preflights_open", column("finished_at").is_(None), "model", "sequence"),
)
