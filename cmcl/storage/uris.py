"""Addresses of object storage: file:///folder and s3://bucket/prefix."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cmcl.contract.errors import InvalidUri
from cmcl.storage.local import LocalStore
from cmcl.storage.object_store import ObjectStore

_ODD = set("\\\0\n\r\t?#")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,63}")


def open_store(uri: str) -> ObjectStore:
    """The store whose root is `uri`. Raises InvalidUri."""
    scheme, host, path = _split(uri)
    if scheme == "file":
        return LocalStore(Path(path))
    # boto3 takes half of the import time of this module, and is not needed for a disk.
    from cmcl.storage.s3 import S3Store

    return S3Store(host, path.strip("/"))


def locate(uri: str) -> tuple[ObjectStore, str]:
    """The store and the key of the one object at `uri`. Raises InvalidUri."""
    _must_name_an_object(uri)
    folder, _, name = uri.rpartition("/")
    _split(uri)
    return open_store(folder), unquote(name) if uri.startswith("file:") else name


def locate_allowed(
    uri: str,
    allowed_prefixes: tuple[str, ...],
    opened: Callable[[str], ObjectStore] = open_store,
) -> tuple[ObjectStore, str]:
    """As `locate`, under one of the prefixes: the store's root is that prefix.

    `opened`: how a store is opened, such as with a cache for many addresses. Links are checked again when an object is
    read: one that was created after the address was accepted is not followed out of the prefix. Raises InvalidUri.
    """
    prefix = check_allowed(uri, allowed_prefixes)
    path, root = (_split(address)[2] for address in (uri, prefix))
    return opened(prefix), path.removeprefix(root.rstrip("/")).lstrip("/")


def check_allowed(uri: str, allowed_prefixes: tuple[str, ...]) -> str:
    """Return the prefix that the object `uri` is under, links included. Raises InvalidUri if there is none."""
    _split(uri)
    _must_name_an_object(uri)
    for prefix in allowed_prefixes:
        if _lies_under(uri, prefix) and _stays_inside(uri, prefix):
            return prefix
    permitted = ", ".join(allowed_prefixes) or "none are configured"
    raise InvalidUri(
        f"{uri!r} is outside the allowed prefixes ({permitted}); to allow it: `cmcl up --allow`, or "
        "CMCL_ALLOWED_PREFIXES of the service"
    )


def _must_name_an_object(uri: str) -> None:
    if uri.endswith("/"):
        raise InvalidUri(f"{uri!r} names a folder, not an object")


def _lies_under(uri: str, prefix: str) -> bool:
    """Compare decoded paths of file URIs, where `%20` is a space, and literal keys of buckets."""
    if not uri.startswith(("file:", "s3:")):
        return False  # "S3:", which S3's own tools do not accept either
    try:
        folder = _split(prefix.rstrip("/") + "/")
    except InvalidUri:
        return False  # an invalid prefix permits nothing
    scheme, bucket, path = _split(uri)
    return (scheme, bucket) == folder[:2] and path.startswith(folder[2])


def _stays_inside(uri: str, prefix: str) -> bool:
    """A link in an allowed folder must not lead out of it; a bucket has no links."""
    scheme, _, path = _split(uri)
    if scheme != "file":
        return True
    # realpath and not resolve(), which fails on circular links.
    real = Path(os.path.realpath(path))
    return real.is_relative_to(os.path.realpath(_split(prefix)[2]))


def _split(uri: str) -> tuple[str, str, str]:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InvalidUri(f"{uri!r} is not an address: {error}") from error
    path = unquote(parts.path) if parts.scheme == "file" else parts.path
    # Check after decoding too: %00 in an address would be a NUL in a path.
    if _ODD & (set(uri) | set(path)):
        raise InvalidUri(f"{uri!r} has a character that addresses may not have")
    if parts.scheme not in ("file", "s3"):
        raise InvalidUri(f"{uri!r}: the permitted schemes are file:// and s3://")
    if parts.scheme == "file" and (parts.netloc or not path.startswith("/")):
        raise InvalidUri(f"{uri!r}: write file:///absolute/path")
    if parts.scheme == "s3" and not _BUCKET.fullmatch(parts.netloc):
        raise InvalidUri(f"{uri!r}: write s3://bucket/key")
    if any(part in (".", "..") for part in path.split("/")):
        raise InvalidUri(f"{uri!r} has '.' or '..' in its path")
    if "//" in path:
        raise InvalidUri(f"{uri!r} has an empty part ('//') in its path")
    return parts.scheme, parts.netloc, path
