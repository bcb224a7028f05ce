"""Events, webhooks and their deliveries."""

from datetime import datetime
from typing import Any

from pydantic import Field, SecretStr, field_serializer

from cmcl.contract.responses import ApiModel


class StreamedEvent(ApiModel):
    """An event of a stream, or a report of progress: it has no `id`, since a stream cannot resume after it."""

    id: int | None = None
    kind: str
    model: str | None = None
    dataset: str | None = None
    job: str | None = None
    version: int | None = None
    details: dict[str, Any] = Field(default={})
    created_at: datetime | None = None


class Event(StreamedEvent):
    """An event."""

    id: int = Field(description="increasing; a stream continues after it (`Last-Event-ID`)")
    kind: str
    model: str
    dataset: str | None
    job: str | None
    version: int | None
    details: dict[str, Any]
    created_at: datetime


class Webhook(ApiModel):
    """A webhook, without its secret."""

    id: str
    owner: str = Field(description="owner whose events it gets; `*` for those of all owners")
    url: str
    kinds: list[str]
    model: str | None
    every_owner: bool = Field(description="whether it gets events of all owners")
    created_at: datetime
    failing_since: datetime | None = Field(description="since when no delivery has succeeded")
    disabled_at: datetime | None = Field(description="since when nothing is sent to it")
    disabled_reason: str | None


class CreatedWebhook(Webhook):
    """A webhook with its secret, which is returned once."""

    secret: SecretStr | None = Field(description="verifies signatures; null in a replayed response")

    @field_serializer("secret", when_used="json")
    def _plain_in_json(self, value: SecretStr | None) -> str | None:
        return value.get_secret_value() if value else None


class Delivery(ApiModel):
    """A message and the state of its delivery."""

    id: str = Field(description="the message's `webhook-id`, equal for all attempts")
    webhook: str
    payload: dict[str, Any]
    attempts: int
    next_at: datetime | None = Field(description="time of the next attempt; null if there is none")
    status: int | None = Field(description="last status of the receiver")
    error: str | None
    created_at: datetime
    delivered_at: datetime | None
    failed_at: datetime | None = Field(description="when it was abandoned")
