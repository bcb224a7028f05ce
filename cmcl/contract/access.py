"""Who may ask the replicas: a list of keys that the control plane signs and each replica checks.

It lies in object storage as a JWS in compact form (RFC 7515), signed with Ed25519 (RFC 8037). So
serving needs neither the database nor the control plane, and who can write to the bucket cannot
make a key.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.modality import Sha256

SNAPSHOT_ALGORITHM = "EdDSA"
# In the JWS header: a token that was signed with the same key for something else is no snapshot.
SNAPSHOT_TYPE = "cmcl-keys+jwt"
# A key as its holder sends it: the digits are of its id, the rest is its secret part.
KEY_PATTERN = r"cmcl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})"
# The id of the operator's own key (CMCL_ADMIN_KEY): it has no form, all of it is secret.
OPERATOR_KEY = "operator"


def key_id(digits: str) -> str:
    """The id of a key with these digits in front."""
    return f"key-{digits}"


class SnapshotKey(BaseModel):
    """A key with the scope `embed` that is neither revoked nor, when it was written, expired."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    sha256: Sha256 = Field(description="of the key's secret part")
    owner: str | None = Field(description="whose models it may ask for; None: everybody's")
    expires_at: datetime | None = None


class KeySnapshot(BaseModel):
    """All of them as of one moment. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    serial: int = Field(ge=1, description="grows; an older snapshot than the last is not believed")
    issued_at: datetime
    keys: tuple[SnapshotKey, ...]
