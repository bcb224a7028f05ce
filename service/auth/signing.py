"""What the control plane signs: JWS in compact form (RFC 7515) with Ed25519 (RFC 8037); the keys are in PEM."""

from dataclasses import dataclass, field

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import BaseModel

from cmcl.contract.api.access import SIGNING_ALGORITHM

JWS = jwt.PyJWS(algorithms=[SIGNING_ALGORITHM])


@dataclass(frozen=True)
class PemPair:
    """A new key pair in PEM."""

    private: str = field(repr=False)
    public: str


def make_pair() -> PemPair:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PemPair(private.decode(), public.decode())


def sign(document: BaseModel, kind: str, key: Ed25519PrivateKey) -> str:
    """Return the JWS. `kind`: the type in its header, so that one kind does not pass for another."""
    payload = document.model_dump_json().encode()
    return JWS.encode(payload, key, SIGNING_ALGORITHM, headers={"typ": kind})
