"""Tables of models, datasets, jobs, versions and promotions."""

from sqlalchemy import (
    Boolean,
    Column,
    Float,
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
    Column("owner", String(64), nullable=False),
    json_column("spec", nullable=False),
    json_column("gate", nullable=False),
    Column("gate_revision", Integer, nullable=False),
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
    # Of the job or the request that caused this revision, if it is traced.
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
    # When the files that only its job needed were given up: the job cannot continue after that.
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
    partial_index("ix_datasets_unswept", column("swept_at").is_(None), "sequence"),
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
    # That it learns or unlearns; null for a merge.
    Column("dataset", String(32), ForeignKey("datasets.id"), nullable=True),
    # Copied, so that a list of jobs needs no datasets; for a merge, the version as `model@version`.
    Column("dataset_name", String(64), nullable=False),
    # VersionRef that a merge adds.
    json_column("merges", nullable=True),
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
    Column("submission_id", String(64), nullable=True),
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
    # Of the request that created it, if that is traced: the parent of the job's spans.
    Column("traceparent", String(55), nullable=True),
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
        column("kind").not_in(("unlearn", "merge")),
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
    # Of the manifest as it is stored.
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
