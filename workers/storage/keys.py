"""Which keys are permitted: the same in every adapter, whatever its disk or bucket would accept."""

from cmcl.contract.errors import InvalidUri

_ODD = frozenset("\\\x7f") | {chr(code) for code in range(32)}


def checked_key(key: str) -> str:
    """The key itself. Raises InvalidUri if it climbs, is absolute or empty, or has odd characters."""
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidUri(f"{key!r} is no key: write folder/name, without empty parts, '.' and '..'")
    if _ODD & set(key):
        raise InvalidUri(f"{key!r} has a character that keys may not have")
    return key


def checked_prefix(prefix: str) -> str:
    """The same for the beginning of keys, which may be empty or end in a slash."""
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix
