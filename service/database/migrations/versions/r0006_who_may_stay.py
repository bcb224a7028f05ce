"""Which services still work with the tables: what later migrations tell those of the release before.

Services of r0005 work with these tables, but do not know where to look, and do not start on them.
"""

import sqlalchemy as sa
from alembic import op

revision = "r0006"
down_revision = "r0005"
compatible_with = "r0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table of one row; whoever runs the migrations writes it."""
    op.create_table(
        "compatibility",
        sa.Column("oldest", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("oldest", name=op.f("pk_compatibility")),
    )
