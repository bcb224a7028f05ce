"""How a dataset names an upload: `upload:up-<12 hex>` in the place of an address."""

import re
from collections.abc import Iterable

from sqlalchemy import Connection

from service.database.queries import uploads
from service.database.rows import UploadRecord
from service.principal import Principal

SCHEME = "upload:"
_URI = re.compile(r"^upload:(up-[0-9a-f]{12})\Z")


def uri_of(upload: UploadRecord) -> str | None:
    """What a dataset can name; None before the upload is complete."""
    return f"{SCHEME}{upload.id}" if upload.state == "complete" else None


def named_by(uri: str) -> str | None:
    """The upload that is meant; None for any other address."""
    found = _URI.match(uri)
    return found.group(1) if found else None


def problems_of(
    connection: Connection, uris: Iterable[str], principal: Principal
) -> dict[str, str | None]:
    """Of the addresses of uploads: why a dataset cannot name it; None if it can.

    Those that it can name are kept until this transaction ends. One query, however many they are.
    """
    named = {uri: named_by(uri) for uri in uris if uri.startswith(SCHEME)}
    held = uploads.hold(connection, [name for name in named.values() if name])
    return {uri: _problem(uri, held.get(name or ""), principal) for uri, name in named.items()}


def _problem(uri: str, found: UploadRecord | None, principal: Principal) -> str | None:
    if found is None or found.state == "aborted" or not principal.sees(found.owner):
        return f"there is no upload {uri.removeprefix(SCHEME)!r}"
    if found.state != "complete":
        return f"upload {found.id} is {found.state}; complete it first"
    return None


def contents_of(
    connection: Connection, uris: Iterable[str], principal: Principal
) -> dict[str, str]:
    """SHA-256 of the file behind each of these addresses that is a complete upload of the principal's."""
    named = {uri: upload for uri in uris if (upload := named_by(uri)) is not None}
    if not named:
        return {}
    digests = uploads.digests(connection, named.values(), principal.owner)
    return {uri: digests[upload] for uri, upload in named.items() if upload in digests}


def note_uses(connection: Connection, dataset: str, uris: Iterable[str]) -> None:
    """Remember which uploads a dataset names: while it may still be read, they are kept."""
    named = {upload for upload in map(named_by, uris) if upload}
    if named:
        uploads.add_uses(connection, dataset, named)
