"""What a list of versions shows, beside their manifests: which dataset each of them learned.

Services of r0006 leave it out; a list reads it from the manifests of what they publish meanwhile.
"""

import sqlalchemy as sa
from alembic import op

revision = "r0007"
down_revision = "r0006"
compatible_with = "r0005"
branch_labels = None
depends_on = None

# A path into the manifest, in each database's words: its last line tells what it learned.
_DATASET = {
    "postgresql": "manifest ->> 'dataset'",
    "sqlite": "json_extract(manifest, '$.dataset')",
}
_NAME = {
    "postgresql": "manifest -> 'learned' -> -1 ->> 'name'",
    "sqlite": "json_extract(manifest, '$.learned[#-1].name')",
}


def upgrade() -> None:
    """The columns, and in them what the manifests say."""
    op.add_column("versions", sa.Column("dataset", sa.String(length=32), nullable=True))
    op.add_column("versions", sa.Column("dataset_name", sa.String(length=48), nullable=True))
    dialect = op.get_bind().dialect.name
    versions = sa.table("versions", sa.column("dataset"), sa.column("dataset_name"))
    told = {"dataset": _DATASET[dialect], "dataset_name": _NAME[dialect]}
    op.execute(
        versions.update().values({name: sa.literal_column(sql) for name, sql in told.items()})
    )
