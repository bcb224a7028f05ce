"""The tables, as the newest migration leaves them; a test compares the two."""

from service.database.columns import metadata
from service.database.tables.access import answers, api_keys, upload_parts, upload_uses, uploads
from service.database.tables.coordination import backup_outbox, compatibility, leases, orphans
from service.database.tables.notifications import deliveries, event_positions, events, webhooks
from service.database.tables.registry import (
    datasets,
    jobs,
    models,
    preflights,
    promotions,
    trials,
    versions,
)

__all__ = [
    "answers",
    "api_keys",
    "compatibility",
    "datasets",
    "deliveries",
    "event_positions",
    "events",
    "jobs",
    "leases",
    "metadata",
    "models",
    "orphans",
    "preflights",
    "promotions",
    "trials",
    "backup_outbox",
    "upload_parts",
    "upload_uses",
    "uploads",
    "versions",
    "webhooks",
]
