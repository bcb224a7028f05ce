"""What is not recorded in object storage yet. After this: everything that is there already."""

import sqlalchemy as sa
from alembic import op

revision = "r0005"
down_revision = "r0004"
# Services before change things without a row here: a rebuild would not know of it.
compatible_with = "r0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The table, and a row in it for each thing that has a record."""
    op.create_table(
        "unrecorded",
        sa.Column(
            "sequence",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_unrecorded")),
    )
    op.execute("INSERT INTO unrecorded (kind, name) SELECT 'model', name FROM models")
    op.execute("INSERT INTO unrecorded (kind, name) SELECT 'dataset', id FROM datasets")
    op.execute(
        "INSERT INTO unrecorded (kind, name)"
        " SELECT 'version', model || '/' || CAST(number AS VARCHAR(16)) FROM versions"
    )
