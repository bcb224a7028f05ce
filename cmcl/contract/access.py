"""What the control plane signs and each replica verifies: the key snapshot, and tokens of sessions.

It is stored in object storage as a JWS in compact form (RFC 7515), signed with Ed25519 (RFC 8037). So
serving needs neither the database nor the control plane, and write access to the bucket is not enough
to create a key.

A person who is signed in to the page has no key that the page could send. The page signs a token for each request that
it forwards to the endpoint instead, with the same key: it names the owner and is valid for a minute.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.modality import Sha256

SNAPSHOT_ALGORITHM = "EdDSA"
# In the JWS header, so that other tokens signed with the same key are not accepted as snapshots.
SNAPSHOT_TYPE = "cmcl-keys+jwt"
SESSION_TYPE = "cmcl-session+jwt"
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
