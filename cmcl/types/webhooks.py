"""Webhooks and their deliveries."""

from datetime import datetime
from typing import Any

from pydantic import Field, SecretStr, field_serializer

from cmcl.types.answer import Answer


class Webhook(Answer):
    """An address that is told of events."""

    id: str
    url: str
    kinds: list[str]
    model: str | None = None
    every_owner: bool = False
    created_at: datetime
    failing_since: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str | None = None


class NewWebhook(Webhook):
    """A webhook as it was made: the only time that the secret of its signatures is told.

    Hidden wherever the object is printed; `secret.get_secret_value()` gives it.
    """

    secret: SecretStr | None = None

    @field_serializer("secret", when_used="json")
    def _told_in_json(self, value: SecretStr | None) -> str | None:
        """JSON is asked for by name, to be kept."""
        return value.get_secret_value() if value else None


class Delivery(Answer):
    """One message to a webhook, and what became of it."""

    id: str
    webhook: str
    payload: dict[str, Any] = Field(default_factory=dict)
    attempts: int
    next_at: datetime | None = None
    status: int | None = None
    error: str | None = None
    created_at: datetime | None = None
    delivered_at: datetime | None = None
    failed_at: datetime | None = None
