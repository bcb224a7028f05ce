"""Keys, the identity of a caller, and quotas of an owner."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_serializer

from cmcl.contract.responses import KNOWN_OR_TEXT, ApiModel


class Scope(StrEnum):
    """A permission of a key. Each route requires one."""

    READ = "read"  # read models, datasets, jobs, versions, events
    WRITE = "write"  # create models and branches, upload and post datasets
    TRAIN = "train"  # cancel, retry, approve, promote, roll back, gates
    ADMIN = "admin"  # keys, webhooks, deleting models and versions
    EMBED = "embed"  # use the embeddings endpoint


# What an operator shares out among owners: the cluster, what replicas serve, and storage.
QuotaName = Literal["running_jobs", "models", "upload_bytes"]


class ApiKey(ApiModel):
    """A key without its secret."""

    id: str
    name: str
    owner: str = Field(description="owner of what it reads and creates")
    scopes: list[Annotated[Scope, KNOWN_OR_TEXT]]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")


class CreatedKey(ApiKey):
    """A key with its secret."""

    key: SecretStr | None = Field(
        default=None,
        description="sent as `Authorization: Bearer`. Returned once: a response that is replayed for an "
        "Idempotency-Key has none",
    )

    @field_serializer("key", when_used="json")
    def _plain_in_json(self, value: SecretStr | None) -> str | None:
        return value.get_secret_value() if value else None


class Whoami(ApiModel):
    """The identity behind a key or a token."""

    name: str
    owner: str | None = Field(description="owner of what it sees; null: all owners")
    scopes: list[Annotated[Scope, KNOWN_OR_TEXT]]


class Quota(ApiModel):
    """How much of a quota an owner uses."""

    used: int = Field(description="number, or bytes for upload_bytes")
    limit: int | None = Field(
        description="more are refused with 409; of running_jobs, more wait. null: unlimited"
    )


class Quotas(ApiModel):
    """The quotas of an owner."""

    owner: str
    quotas: dict[Annotated[QuotaName, KNOWN_OR_TEXT], Quota]
