"""The tables as of the newest migration; a test compares the two."""

from service.database.columns import metadata
from service.database.tables.access import api_keys, responses, upload_parts, upload_uses, uploads
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
    "api_keys",
    "backup_outbox",
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
    "responses",
    "trials",
    "upload_parts",
    "upload_uses",
    "uploads",
    "versions",
    "webhooks",
]
