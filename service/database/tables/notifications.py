"""Tables of events, webhooks and deliveries."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, and_, column

from service.database.columns import (
    Counter,
    SanitizedText,
    UtcDateTime,
    json_column,
    metadata,
    partial_index,
)

events = Table(
    "events",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    # Its position in the feed; null until it is numbered (`service.database.queries.events.number`).
    Column("position", BigInteger, nullable=True, unique=True),
    Column("owner", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("model", String(48), nullable=False),
    Column("dataset", String(32), nullable=True),
    Column("job", String(32), nullable=True),
    Column("version", Integer, nullable=True),
    json_column("data", nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Index(None, "owner", "position"),
    Index(None, "model", "position"),
    Index(None, "job", "position"),
)

# One row, locked while events are numbered. It only grows, also when old events are removed.
event_positions = Table(
    "event_positions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("newest", BigInteger, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("url", String(1024), nullable=False),
    # In the form of `service.events.webhook_secrets`; signs every delivery.
    Column("secret", String(128), nullable=False),
    json_column("kinds", nullable=False),
    Column("model", String(48), nullable=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disabled_at", UtcDateTime, nullable=True),
    Column("disabled_reason", SanitizedText, nullable=True),
    # Since when every attempt has failed, and until when deliveries pause.
    Column("failing_since", UtcDateTime, nullable=True),
    Column("rests_until", UtcDateTime, nullable=True),
    # Which replica sends to it: one at a time.
    Column("lease_owner", String(64), nullable=True),
    Column("lease_until", UtcDateTime, nullable=True),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("sequence", Counter, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("webhook", String(32), ForeignKey("webhooks.id"), nullable=False),
    json_column("payload", nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcDateTime, nullable=False),
    Column("status", Integer, nullable=True),
    Column("error", SanitizedText, nullable=True),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    Column("delivered_at", UtcDateTime, nullable=True),
    Column("failed_at", UtcDateTime, nullable=True),
    Index(None, "webhook", "sequence"),
    partial_index(
        "ix_deliveries_due",
        and_(column("delivered_at").is_(None), column("failed_at").is_(None)),
        "webhook",
        "next_at",
    ),
)
