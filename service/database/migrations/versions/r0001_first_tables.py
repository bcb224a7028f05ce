"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
compatible_with = "r0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table, those that others point at before them."""
    _create_idempotency()
    _create_models()
    _create_datasets()
    _create_promotions()
    _create_jobs()
    _create_versions()


def _create_idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("route", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("location", sa.String(length=255), nullable=True),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", "route", name=op.f("pk_idempotency")),
    )


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("head", sa.Integer(), nullable=False),
        sa.Column("live_version", sa.Integer(), nullable=True),
        sa.Column("live_generation", sa.Integer(), nullable=False),
        sa.Column("mirrored_generation", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_models")),
    )


def _create_datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("pair_first", sa.String(length=32), nullable=False),
        sa.Column("pair_second", sa.String(length=32), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("quarantine_reason", sa.Text(), nullable=True),
        sa.Column("manifest", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_datasets_model_models")),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_datasets")),
        sa.UniqueConstraint("id", name=op.f("uq_datasets_id")),
        sa.UniqueConstraint("model", "fingerprint", name=op.f("uq_datasets_model_fingerprint")),
    )
    op.create_index(op.f("ix_datasets_model"), "datasets", ["model"], unique=False)


def _create_promotions() -> None:
    op.create_table(
        "promotions",
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model"], ["models.name"], name=op.f("fk_promotions_model_models")
        ),
        sa.PrimaryKeyConstraint("model", "generation", name=op.f("pk_promotions")),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("dataset", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("attempts_before_retry", sa.Integer(), nullable=False),
        sa.Column("submission_id", sa.String(length=64), nullable=True),
        sa.Column("parent_version", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state_changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset"], ["datasets.id"], name=op.f("fk_jobs_dataset_datasets")
        ),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_jobs_model_models")),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_jobs")),
        sa.UniqueConstraint("dataset", name=op.f("uq_jobs_dataset")),
        sa.UniqueConstraint("id", name=op.f("uq_jobs_id")),
    )
    op.create_index(op.f("ix_jobs_model_state"), "jobs", ["model", "state"], unique=False)


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("job", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_versions_job_jobs")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_versions_model_models")),
        sa.PrimaryKeyConstraint("model", "number", name=op.f("pk_versions")),
        sa.UniqueConstraint("job", name=op.f("uq_versions_job")),
    )
