"""Datasets that name uploads are known by the contents of these as well.

Those that are there keep what they are known by: their addresses. Services of r0006 leave the column
out, and know datasets by their addresses alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "r0008"
down_revision = "r0007"
compatible_with = "r0005"
branch_labels = None
depends_on = None

_HELD = sa.text("fingerprint IS NOT NULL")


def upgrade() -> None:
    """The column; two datasets of a model have the same only where one was given up."""
    op.add_column("datasets", sa.Column("content_fingerprint", sa.String(64), nullable=True))
    op.create_index(
        "uq_datasets_model_content_fingerprint",
        "datasets",
        ["model", "content_fingerprint"],
        unique=True,
        sqlite_where=_HELD,
        postgresql_where=_HELD,
    )
