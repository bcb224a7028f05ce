"""JSON documents of the store. Each ends with a checksum, a digest of its key and its text, which every reader verifies.

    {"generation":4,"version":3,"sha256":"9f2c..."}

So a document with a flipped bit, or one that was copied over another one, is refused, although it is valid JSON. A cut
one is no JSON. A document without a checksum is read as it is: an operator may write one by hand to repair a store.
It protects from damage, not from anyone with write access to the store, who can compute it.
"""

import hashlib
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from cmcl.contract.errors import InvalidVersion
from cmcl.storage.object_store import ObjectStore

T = TypeVar("T", bound=BaseModel)
_MEMBER = b',"sha256":"'
_CHECKSUM_BYTES = len(_MEMBER) + 64 + len(b'"}')


def with_checksum(text: bytes, subject: str) -> bytes:
    """Add a checksum to a JSON object. `subject`: what it is a document of, mostly its key."""
    return text[:-1] + _MEMBER + _digest(text, subject) + b'"}'


def without_checksum(data: bytes, subject: str) -> bytes:
    """Return the JSON object without its checksum. Raises InvalidVersion if the checksum is that of another text or subject."""
    begin = len(data) - _CHECKSUM_BYTES
    if begin < 1 or not data.startswith(_MEMBER, begin):
        return data
    text = data[:begin] + b"}"
    if data[begin + len(_MEMBER) : -2] != _digest(text, subject):
        raise InvalidVersion("it is not what was written under this key (SHA-256)")
    return text


def _digest(text: bytes, subject: str) -> bytes:
    return hashlib.sha256(subject.encode() + b"\n" + text).hexdigest().encode()


def document(content: BaseModel, subject: str) -> bytes:
    """Serialize a document with its checksum."""
    return with_checksum(content.model_dump_json().encode(), subject)


def write_document(store: ObjectStore, key: str, content: BaseModel) -> None:
    """Write a document, in place of an earlier one. Raises StorageUnavailable."""
    store.put(key, document(content, key))


def parse_document(data: bytes, key: str, kind: type[T], subject: str | None = None) -> T:
    """Parse a document with the checksum of its key, or of another `subject`. Raises InvalidVersion, which names the key."""
    try:
        return kind.model_validate_json(without_checksum(data, subject or key))
    except (InvalidVersion, ValidationError) as error:
        raise InvalidVersion(
            f"{key} cannot be read: {error}; restore it from a backup (docs/disaster.md)"
        ) from error


def read_document(store: ObjectStore, key: str, kind: type[T], subject: str | None = None) -> T:
    """Read and parse a document. Raises ObjectNotFound, InvalidVersion, StorageUnavailable."""
    return parse_document(store.read(key), key, kind, subject)
