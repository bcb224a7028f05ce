"""Who may do what."""

from datetime import datetime

from pydantic import SecretStr, field_serializer

from cmcl.types.answer import Answer


class ApiKey(Answer):
    """A key without its secret, which the service does not know either."""

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
    """A key as it was made: the only time that its secret is told.

    It is hidden wherever the object is printed; `key.get_secret_value()` gives it.
    """

    key: SecretStr | None = None

    @field_serializer("key", when_used="json")
    def _told_in_json(self, value: SecretStr | None) -> str | None:
        """JSON is asked for by name, to be kept."""
        return value.get_secret_value() if value else None


class Whoami(Answer):
    """For whom the service takes whoever asks."""

    name: str
    owner: str | None = None
    scopes: list[str]
