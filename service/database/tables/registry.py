"""What is learned: models, their datasets, jobs and versions, and which version answers."""

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
    # Grows with each promotion.
    Column("live_generation", Integer, nullable=False),
    # Grows with each change of anything that live.json tells, at that moment; `mirrored_revision` is
    # the one that it shows.
    Column("live_revision", Integer, nullable=False),
    Column("mirrored_revision", Integer, nullable=False),
    Column("revised_at", UtcDateTime, nullable=True),
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
    # The same with the contents of uploads in the place of their addresses, which are other ones each
    # time that a file is sent; null where it names no upload. It holds as long as `fingerprint` does.
    Column("content_fingerprint", String(64), nullable=True),
    Column("quarantine_reason", SanitizedText, nullable=True),
    json_column("manifest", nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    # Null while shards can still be added; a dataset has a job from then on.
    Column("sealed_at", UtcDateTime, nullable=True),
    Column("deleted_at", UtcDateTime, nullable=True),
    # When what only its job needed was given up: from then on the job cannot be carried on.
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
    # Null for a version that a branch has from its source.
    Column("job", String(32), ForeignKey("jobs.id"), nullable=True, unique=True),
    Column("attempt", Integer, nullable=False),
    Column("parent", Integer, nullable=True),
    # The manifest's, so that a list needs no manifests.
    Column("dataset", String(32), nullable=False),
    Column("dataset_name", String(48), nullable=False),
    json_column("manifest", nullable=False),
    # {dataset: Recall}: the manifest's evaluation, so that a matrix needs no manifests.
    json_column("evaluation", nullable=False),
    # The model whose version of the same number it is a copy of.
    Column("copied_from", String(48), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    # When its files were in place; only then can it answer or have a child.
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
    # The generation that a roll back from here returns to.
    Column("returns_to", Integer, nullable=True),
    Column("reason", SanitizedText, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

# Versions on trial beside the one that answers. Whatever is observed lies under the revision of
# live.json, so a trial that is changed ends here and begins anew under the next one.
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
    # When the version came on trial, whatever was changed since.
    Column("began_at", UtcDateTime, nullable=False),
    # Observed: the sum of what the replicas have told.
    json_column("observed", nullable=False),
    Column("ended_at", UtcDateTime, nullable=True),
    Column("outcome", String(16), nullable=True),
    Column("ended_because", SanitizedText, nullable=True),
    # When what the replicas had written was removed.
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
    # The fence, as of jobs; and the number of the attempt that is made, or was made last.
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
