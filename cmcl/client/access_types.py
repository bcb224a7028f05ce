"""Types of keys and webhooks, as the API returns them."""

from datetime import datetime
from typing import Any

from pydantic import Field, SecretStr, field_serializer

from cmcl.client.types import ApiModel


class ApiKey(ApiModel):
    """An API key, without its secret."""

    id: str
    name: str
    owner: str | None = None
    scopes: list[str]
    created_at: datetime
    created_by: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class NewApiKey(ApiKey):
    """A new API key with its secret, which is returned only once.

    The secret is hidden in `repr`; read it with `key.get_secret_value()`.
    """

    key: SecretStr | None = None

    @field_serializer("key", when_used="json")
    def _plain_in_json(self, value: SecretStr | None) -> str | None:
        """Include the secret in JSON, so that it can be stored."""
        return value.get_secret_value() if value else None


class Whoami(ApiModel):
    """The identity and scopes of the caller's key."""

    name: str
    owner: str | None = None
    scopes: list[str]


class Quota(ApiModel):
    """What an owner uses of a quota. `limit`: None for unlimited."""

    used: int
    limit: int | None = None


class Quotas(ApiModel):
    """The quotas of an owner, by name."""

    owner: str
    quotas: dict[str, Quota]


class Webhook(ApiModel):
    """An address to which events are delivered."""

    id: str
    owner: str | None = None
    url: str
    kinds: list[str]
    model: str | None = None
    every_owner: bool = False
    created_at: datetime
    failing_since: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str | None = None


class NewWebhook(Webhook):
    """A new webhook with its signing secret, which is returned only once.

    The secret is hidden in `repr`; read it with `secret.get_secret_value()`.
    """

    secret: SecretStr | None = None

    @field_serializer("secret", when_used="json")
    def _plain_in_json(self, value: SecretStr | None) -> str | None:
        """Include the secret in JSON, so that it can be stored."""
        return value.get_secret_value() if value else None


class Delivery(ApiModel):
    """A message to a webhook, and its outcome."""

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
