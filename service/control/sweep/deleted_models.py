"""Files of deleted models, and of the datasets that nobody else has learned."""

from datetime import timedelta

from service.control.context import Context
from service.control.sweep.purge import remove_all
from service.database.queries import sweeping
from workers.storage import layout

# Longer than any transaction that had seen the model before it was deleted.
GRACE = timedelta(hours=1)
_AT_ONCE = 10


def sweep_deleted_models(context: Context) -> None:
    """All versions of them. A dataset stays while another model's versions have learned it."""
    with context.database.read() as connection:
        found = sweeping.deleted_models(connection, context.clock() - GRACE, _AT_ONCE)
    for model in found:
        _sweep(context, model)


def _sweep(context: Context, model: str) -> None:
    now = context.clock()
    with context.database.read() as connection:
        protected = sweeping.protected_datasets(connection, now - GRACE)
        datasets = sweeping.datasets_of(connection, model) - protected
    prefixes = [layout.model_prefix(model), *map(layout.dataset_prefix, sorted(datasets))]
    # All of them, also where one cannot be removed now.
    removed = [remove_all(context.store, prefix) for prefix in prefixes]
    if all(removed):
        with context.database.write() as connection:
            sweeping.give_up_datasets(connection, datasets, now)
            sweeping.give_up_model(connection, model, now)
