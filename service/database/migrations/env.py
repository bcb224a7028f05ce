"""Alembic's entry: it runs inside the transaction that `upgrade` opened."""

from alembic import context

from service.database.tables import models

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=models.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
