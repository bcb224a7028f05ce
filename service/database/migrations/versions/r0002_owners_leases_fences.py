"""Owners, leases, a fence that counts, open datasets, policies, approvals, kinds of promotions.

Rows that are there belong to the owner `default` from now on.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
# Services before write rows without fences.
compatible_with = "r0002"
branch_labels = None
depends_on = None

_OPEN = sa.text("finished_at IS NULL")
_UNSWEPT = sa.text("finished_at IS NOT NULL AND swept_at IS NULL")
_UNSWEPT_DATASET = sa.text("swept_at IS NULL")
_UNSTORED = sa.text("stored_at IS NULL")


def upgrade() -> None:
    """Each table in turn, then what only the rows can tell."""
    _models()
    _datasets()
    _jobs()
    _versions()
    _promotions()
    _answers()
    _seal_what_has_a_job()
    _read_evaluations()
    _say_where_promotions_return_to()


def _owner() -> sa.Column[Any]:
    return sa.Column("owner", sa.String(64), nullable=False, server_default="default")


def _moment(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def _count(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), nullable=False, server_default="0")


def _add(table: str, *columns: sa.Column[Any]) -> None:
    for column in columns:
        op.add_column(table, column)


def _models() -> None:
    _add(
        "models",
        _owner(),
        sa.Column("policy", sa.JSON(), nullable=False, server_default="{}"),
        _count("policy_revision"),
        sa.Column("lease_owner", sa.String(64), nullable=True),
        _moment("lease_until"),
        sa.Column("branched_from", sa.JSON(), nullable=True),
        _moment("deleted_at"),
        _moment("swept_at"),
    )
    op.create_index("ix_models_owner", "models", ["owner"])


def _datasets() -> None:
    moments = [_moment(name) for name in ("sealed_at", "deleted_at", "swept_at")]
    _add("datasets", _owner(), *moments)
    op.create_index("ix_datasets_owner", "datasets", ["owner"])
    _index_of_some("ix_datasets_unswept", "datasets", ["sequence"], _UNSWEPT_DATASET)


def _jobs() -> None:
    moments = [_moment(name) for name in ("launched_at", "heard_at", "ended_at", "swept_at")]
    approval = sa.Column("approval", sa.JSON(), nullable=True)
    _add("jobs", _owner(), _count("revision"), approval, *moments)
    op.drop_index("ix_jobs_model_state", table_name="jobs")
    op.create_index("ix_jobs_model_state_sequence", "jobs", ["model", "state", "sequence"])
    op.create_index("ix_jobs_owner", "jobs", ["owner"])
    _index_of_some("ix_jobs_open", "jobs", ["model", "sequence"], _OPEN)
    _index_of_some("ix_jobs_unswept", "jobs", ["finished_at"], _UNSWEPT)


def _versions() -> None:
    with op.batch_alter_table("versions") as table:
        table.add_column(sa.Column("evaluation", sa.JSON(), nullable=False, server_default="{}"))
        table.add_column(sa.Column("copied_from", sa.String(48), nullable=True))
        table.add_column(_moment("retired_at"))
        table.alter_column("job", existing_type=sa.String(32), nullable=True)
    _index_of_some("ix_versions_unstored", "versions", ["model", "number"], _UNSTORED)


def _promotions() -> None:
    with op.batch_alter_table("promotions") as table:
        kind = sa.Column("kind", sa.String(16), nullable=False, server_default="published")
        table.add_column(kind)
        table.add_column(sa.Column("returns_to", sa.Integer(), nullable=True))
        table.alter_column("actor", existing_type=sa.String(16), type_=sa.String(128))


def _answers() -> None:
    with op.batch_alter_table("idempotency") as table:
        table.add_column(_owner())
        table.alter_column("status", existing_type=sa.Integer(), nullable=True)
        table.alter_column("body", existing_type=sa.JSON(), nullable=True)
        table.drop_constraint("pk_idempotency", type_="primary")
        table.create_primary_key("pk_idempotency", ["owner", "key", "route"])
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])


def _index_of_some(name: str, table: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def _seal_what_has_a_job() -> None:
    op.execute("UPDATE datasets SET sealed_at = created_at")


def _read_evaluations() -> None:
    """The recalls of each version, out of its manifest."""
    versions = sa.table(
        "versions",
        sa.column("model", sa.String()),
        sa.column("number", sa.Integer()),
        sa.column("manifest", sa.JSON()),
        sa.column("evaluation", sa.JSON()),
    )
    connection = op.get_bind()
    for model, number, manifest in connection.execute(
        sa.select(versions.c.model, versions.c.number, versions.c.manifest)
    ).all():
        connection.execute(
            versions.update()
            .where(versions.c.model == model, versions.c.number == number)
            .values(evaluation=manifest["report"].get("evaluation", {}))
        )


def _say_where_promotions_return_to() -> None:
    """Each one to the one before it: which of them were roll backs was not written down."""
    op.execute("UPDATE promotions SET kind = 'promoted' WHERE actor = 'user'")
    op.execute("UPDATE promotions SET returns_to = generation - 1 WHERE generation > 1")
