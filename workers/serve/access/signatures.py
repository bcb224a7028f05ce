"""The signature under the list of keys: a JWS (RFC 7515) with Ed25519 (RFC 8037), and nothing else."""

import re
from collections.abc import Sequence

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import ValidationError

from cmcl.contract.access import SNAPSHOT_ALGORITHM, SNAPSHOT_TYPE, KeySnapshot

# Whatever the token's header says: with a public key alone nobody can sign by another algorithm.
_JWS = jwt.PyJWS(algorithms=[SNAPSHOT_ALGORITHM])
_BLOCK = re.compile(r"-----BEGIN [^-]+-----.*?-----END [^-]+-----", re.DOTALL)


class NotSigned(Exception):
    """A list of keys that cannot be believed; the message says why."""


def read_public_keys(pem: str) -> tuple[Ed25519PublicKey, ...]:
    """All keys of a text with one PEM block or several. Raises ValueError."""
    keys = tuple(_public_key(block) for block in _BLOCK.findall(pem))
    if not keys:
        raise ValueError("it has no block -----BEGIN PUBLIC KEY-----")
    return keys


def verified(token: bytes, keys: Sequence[Ed25519PublicKey]) -> KeySnapshot:
    """The list, if one of these keys has signed it. Raises NotSigned."""
    for key in keys:
        try:
            found = _JWS.decode_complete(token, key, algorithms=[SNAPSHOT_ALGORITHM])
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError as error:
            raise NotSigned(f"it is no JWS signed by {SNAPSHOT_ALGORITHM}: {error}") from error
        return _parsed(found["payload"], found["header"].get("typ"))
    raise NotSigned("its signature is by none of the public keys that are believed here")


def _parsed(payload: bytes, kind: object) -> KeySnapshot:
    if kind != SNAPSHOT_TYPE:
        raise NotSigned(f"its header says typ {kind!r} and not {SNAPSHOT_TYPE!r}")
    try:
        return KeySnapshot.model_validate_json(payload)
    except ValidationError as error:
        raise NotSigned(
            f"it is signed, but no list of a form that is known here: {error}"
        ) from error


def _public_key(block: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(block.encode())
    except ValueError as error:
        raise ValueError(f"a block cannot be read as a public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.strip("_")
        raise ValueError(  # noqa: TRY004
            f"a block is a public key of another kind ({kind}); permitted is Ed25519"
        )
    return key
