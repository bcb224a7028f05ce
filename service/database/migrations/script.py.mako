"""${message}"""

from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
# The oldest revision whose services still read and write these tables without harm: the one before where
# only tables, and columns that are empty or have a default, are added; else this one.
compatible_with = ${repr(up_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """${message}"""
    ${upgrades if upgrades else "pass"}
