"""Revisions of live.json, and versions on trial.

Every live.json is written anew once after this: it has more to tell than the generation.
"""

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"
# Services before read and write mirrored_generation, which is gone.
compatible_with = "r0004"
branch_labels = None
depends_on = None

_OPEN = sa.text("ended_at IS NULL")
_UNSWEPT = sa.text("ended_at IS NOT NULL AND swept_at IS NULL")


def upgrade() -> None:
    """The tables, then what only the rows can tell."""
    _models()
    _trials()
    _count_revisions()


def _models() -> None:
    for name in ("live_revision", "mirrored_revision"):
        op.add_column("models", sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    op.add_column("models", sa.Column("revised_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_column("models", "mirrored_generation")


def _trials() -> None:
    op.create_table(
        "trials",
        sa.Column("model", sa.String(length=48), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("observed", sa.JSON(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("ended_because", sa.Text(), nullable=True),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_trials_model_models")),
        sa.PrimaryKeyConstraint("model", "revision", name=op.f("pk_trials")),
    )
    op.create_index(
        "ix_trials_open",
        "trials",
        ["model"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
    op.create_index(
        "ix_trials_unswept",
        "trials",
        ["ended_at"],
        sqlite_where=_UNSWEPT,
        postgresql_where=_UNSWEPT,
    )


def _count_revisions() -> None:
    """One for each promotion. Of a deleted model whose files are gone there is nothing to mirror."""
    op.execute("UPDATE models SET live_revision = live_generation")
    op.execute(
        "UPDATE models SET revised_at = (SELECT created_at FROM promotions"
        " WHERE promotions.model = models.name"
        " AND promotions.generation = models.live_generation)"
    )
    op.execute("UPDATE models SET mirrored_revision = live_revision WHERE swept_at IS NOT NULL")
