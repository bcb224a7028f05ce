"""Idempotency: a write that is sent twice is done once.

A proxy or a client sends a request again whose replica died, or seemed to, before it answered. By then the write
may be in the store, and others may have written after it: repeated, it would undo their changes. So what a write
creates has the mark of its request in its name, and a write looks for its mark first. Marks last as long as the
names: until the name of the collection is freed, or an hour after the write was merged with others, or the
deletion was made.
"""

import hashlib
import secrets

_MARK_DIGITS = 16
_NAME_DIGITS = 32


def mark_of(*request: bytes) -> str:
    """Return the mark of a request from what identifies it: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in request:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:_MARK_DIGITS]


def new_mark() -> str:
    """Return a random mark, for a request without an idempotency key."""
    return secrets.token_hex(_MARK_DIGITS // 2)


def marked(mark: str) -> str:
    """Return a unique name with this mark, 32 hexadecimal digits: two attempts may run at the same time."""
    return mark + secrets.token_hex((_NAME_DIGITS - _MARK_DIGITS) // 2)


def is_marked(name: str, mark: str) -> bool:
    """Whether the name has this mark."""
    return name.startswith(mark)
