"""A write that comes twice is done once.

A proxy sends a request again whose replica died, or seemed to, before it answered; and so does a client.
By then the write may be in the store, and others may have written after it: done once more it would
undo what they did. So what a write makes has its request's mark in its name, and whoever is about to
make a change looks for that mark first. It is known for as long as the names are: until the collection
is freed, or an hour after the write was merged with others, or the deletion was made.
"""

import hashlib
import secrets

_MARK_DIGITS = 16
_NAME_DIGITS = 32


def mark_of(*request: bytes) -> str:
    """Of what makes the request one and no other: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in request:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:_MARK_DIGITS]


def new_mark() -> str:
    """Of a request that nobody can tell from others: it never comes twice."""
    return secrets.token_hex(_MARK_DIGITS // 2)


def marked(mark: str) -> str:
    """A name that nothing else has, 32 hexadecimal digits: two attempts may run side by side."""
    return mark + secrets.token_hex((_NAME_DIGITS - _MARK_DIGITS) // 2)


def is_marked(name: str, mark: str) -> bool:
    """Whether `marked` gave this name for the same request."""
    return name.startswith(mark)
