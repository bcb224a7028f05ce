"""Signs the key snapshot: Ed25519 keys in PEM, a JWS in compact form (RFC 7515, 8037)."""

from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from cmcl.contract.access import SNAPSHOT_ALGORITHM, SNAPSHOT_TYPE, KeySnapshot

_JWS = jwt.PyJWS(algorithms=[SNAPSHOT_ALGORITHM])


@dataclass(frozen=True)
class PemPair:
    """A new key pair in PEM."""

    private: str = field(repr=False)
    public: str


def make_pair() -> PemPair:
    """Generate a signing key pair."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PemPair(private.decode(), public.decode())


def read_signing_key(pem: str) -> Ed25519PrivateKey:
    """The private key. Raises ValueError without quoting it."""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    # TypeError: it is encrypted. The library's own message may quote the key.
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(  # noqa: TRY004
            "it is not an Ed25519 private key in PEM without a password; "
            "create one with `python -m service keys signing-key`"
        )
    return key


def sign(snapshot: KeySnapshot, key: Ed25519PrivateKey) -> bytes:
    """The signed snapshot, as stored in object storage."""
    payload = snapshot.model_dump_json().encode()
    token = _JWS.encode(payload, key, SNAPSHOT_ALGORITHM, headers={"typ": SNAPSHOT_TYPE})
    return token.encode()


def read_signed(token: bytes, key: Ed25519PrivateKey) -> KeySnapshot | None:
    """The snapshot; None if it was not signed with this key or cannot be read."""
    try:
        payload = _JWS.decode(token, key.public_key(), algorithms=[SNAPSHOT_ALGORITHM])
        return KeySnapshot.model_validate_json(payload)
    except (jwt.PyJWTError, ValidationError):
        return None
