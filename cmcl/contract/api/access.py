"""Keys, the identity of a caller, and quotas of an owner."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer

from cmcl.contract.modality import Sha256
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


# --- What the control plane signs and each replica verifies ---------------------------------------
#
# The key snapshot is stored in object storage as a JWS in compact form (RFC 7515), signed with Ed25519 (RFC 8037). So
# serving needs neither the database nor the control plane, and write access to the bucket is not enough
# to create a key.
#
# A person who is signed in to the page has no key that the page could send. The page signs a token for each request that
# it forwards to the endpoint instead, with the same key: it names the owner and is valid for a minute.
#
# The receipt of an erased row is signed for people, who check it with the public key.

SIGNING_ALGORITHM = "EdDSA"
# In the JWS header, so that what is signed as one kind is not accepted as another.
SNAPSHOT_TYPE = "cmcl-keys+jwt"
SESSION_TYPE = "cmcl-session+jwt"
RECEIPT_TYPE = "cmcl-erasure+jwt"
# A key as its holder sends it: the digits are from its id, the rest is secret.
KEY_PATTERN = r"cmcl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})"
# The id of the operator's own key (CMCL_ADMIN_KEY), which has no format; all of it is secret.
OPERATOR_KEY = "operator"


def key_id(digits: str) -> str:
    """The id of the key with these digits."""
    return f"key-{digits}"


class SnapshotKey(BaseModel):
    """A key with the scope `embed` that was neither revoked nor expired when written."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    sha256: Sha256 = Field(description="of the key's secret part")
    owner: str | None = Field(description="owner whose models it may use; None: all owners")
    expires_at: datetime | None = None


class KeySnapshot(BaseModel):
    """All keys at one time. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    serial: int = Field(
        ge=1, description="increases; a snapshot older than the last one is rejected"
    )
    issued_at: datetime
    keys: tuple[SnapshotKey, ...]


class SessionToken(BaseModel):
    """A session of the page that asks the endpoint, and for whom. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    session: str = Field(description="id of the session")
    owner: str | None = Field(description="owner whose models it may use; None: all owners")
    expires_at: datetime
