"""Keys that may embed: replicas go on believing the signed list, and the service must not empty it.

The list is believed because it is signed: whoever can write to the bucket alone cannot make a key.
What else a key permitted is not in it, and so is not given back.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cmcl.contract.access import OPERATOR_KEY, SnapshotKey
from cmcl.contract.errors import ObjectNotFound
from service.control.access.signing import read_signed
from service.control.rebuild.bucket import Bucket
from service.control.rebuild.found.pointer import ACTOR
from service.database.queries.records import Row
from service.principal import DEFAULT_OWNER, Scope
from workers.storage import layout


def find_keys(bucket: Bucket, signing_key: Ed25519PrivateKey | None) -> list[Row]:
    """Rows of keys with the scope `embed` alone."""
    try:
        token = bucket.store.read(layout.key_snapshot())
    except ObjectNotFound:
        return []
    so = "no key is restored; with the signing key, the service writes a list without them"
    if signing_key is None:
        why = "CMCL_SNAPSHOT_SIGNING_KEY is not set, so it cannot be believed"
        bucket.findings.damage(layout.key_snapshot(), why, so)
        return []
    snapshot = read_signed(token, signing_key)
    if snapshot is None:
        bucket.findings.damage(layout.key_snapshot(), "it was not signed with this key", so)
        return []
    return [
        {**_row(key), "created_at": snapshot.issued_at}
        for key in snapshot.keys
        if key.id != OPERATOR_KEY
    ]


def _row(key: SnapshotKey) -> Row:
    return {
        "id": key.id,
        "owner": key.owner or DEFAULT_OWNER,
        "name": key.name,
        "scopes": [Scope.EMBED.value],
        "secret_sha256": key.sha256,
        "created_by": ACTOR,
        "expires_at": key.expires_at,
        "revoked_at": None,
        "last_used_at": None,
    }
