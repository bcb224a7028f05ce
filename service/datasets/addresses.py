"""Addresses of shards: those that users may name, and `upload:up-<12 hex>` for an upload."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from sqlalchemy import Connection

from cmcl.contract.errors import InvalidUri
from service.database.queries import uploads
from service.database.rows import UploadRecord
from service.datasets.request import NewShards
from service.errors import FieldProblem, Unprocessable
from service.principal import Principal
from workers.storage.uris import check_allowed

SCHEME = "upload:"
_URI = re.compile(r"^upload:(up-[0-9a-f]{12})\Z")


@dataclass(frozen=True)
class Intake:
    """The caller, the time, and which of the posted addresses are not permitted.

    Checking an address may access the file system, so it happens before the transaction, which holds the lock of all
    writers. `checked`: by address, why it is not permitted, or None; without uploads.
    """

    principal: Principal
    now: datetime
    checked: Mapping[str, str | None]

    @classmethod
    def of(
        cls, principal: Principal, now: datetime, allowed: tuple[str, ...], posted: NewShards
    ) -> Self:
        """Check the posted addresses against the prefixes `allowed`. Call it outside a transaction."""
        addresses = {uri for uri in posted.uris if not uri.startswith(SCHEME)}
        return cls(principal, now, {uri: _address_problem(uri, allowed) for uri in addresses})


def uri_of(upload: UploadRecord) -> str | None:
    """The address that a dataset can name; None before the upload is complete."""
    return f"{SCHEME}{upload.id}" if upload.state == "complete" else None


def upload_of(uri: str) -> str | None:
    """The id of the upload that an address names; None for any other address."""
    found = _URI.match(uri)
    return found.group(1) if found else None


def contents_of(
    connection: Connection, uris: Iterable[str], principal: Principal
) -> dict[str, str]:
    """SHA-256 by address, of complete uploads of the principal. Others are known by their address alone."""
    named = {uri: upload for uri in uris if (upload := upload_of(uri)) is not None}
    if not named:
        return {}
    digests = uploads.digests(connection, named.values(), principal.owner)
    return {uri: digests[upload] for uri, upload in named.items() if upload in digests}


def record_uses(connection: Connection, dataset: str, shards: NewShards) -> None:
    """Record which uploads the dataset names: they are kept while it may still be read."""
    named = {upload for upload in map(upload_of, shards.uris) if upload}
    if named:
        uploads.add_uses(connection, dataset, named)


def check_addresses(
    connection: Connection,
    added: NewShards,
    intake: Intake,
    contents: Mapping[str, str],
    before: NewShards | None = None,
) -> None:
    """Check that each address is permitted and names a file once. Raises Unprocessable.

    Both lists are checked together: a held-out shard that is trained on would measure nothing. Shards `before` were
    checked when they were posted.
    """
    problems: list[FieldProblem] = []
    unusable = {**intake.checked, **_upload_problems(connection, added.uris, intake.principal)}
    seen = {contents.get(uri, uri): uri for uri in (before.uris if before else ())}
    for field, refs in (
        ("shards", added.shards),
        ("evaluation_shards", added.evaluation_shards),
    ):
        for index, ref in enumerate(refs):
            file = contents.get(ref.uri, ref.uri)
            # A KeyError for an address that was not checked: it must not pass for a permitted one.
            problem = _same_file(ref.uri, seen[file]) if file in seen else unusable[ref.uri]
            if problem:
                problems.append(FieldProblem(f"{field}[{index}].uri", problem, ref.uri))
            seen.setdefault(file, ref.uri)
    if problems:
        raise Unprocessable("an address cannot be used", *problems)


def _upload_problems(
    connection: Connection, uris: Iterable[str], principal: Principal
) -> dict[str, str | None]:
    """By address of an upload: why a dataset cannot name it, or None.

    Uploads that it can name are kept until this transaction ends. One query for any number of them.
    """
    named = {uri: upload_of(uri) for uri in uris if uri.startswith(SCHEME)}
    held = uploads.hold(connection, [name for name in named.values() if name])
    return {
        uri: _upload_problem(uri, held.get(name or ""), principal) for uri, name in named.items()
    }


def _upload_problem(uri: str, found: UploadRecord | None, principal: Principal) -> str | None:
    if found is None or found.state == "aborted" or not principal.sees(found.owner):
        return f"there is no upload {uri.removeprefix(SCHEME)!r}"
    if found.state != "complete":
        return f"upload {found.id} is {found.state}; complete it first"
    return None


def _address_problem(uri: str, allowed: tuple[str, ...]) -> str | None:
    try:
        check_allowed(uri, allowed)
    except InvalidUri as error:
        return str(error)
    return None


def _same_file(uri: str, before: str) -> str:
    if uri == before:
        return f"{uri!r} is named twice"
    return f"{uri!r} is the same file as {before!r} (SHA-256)"
