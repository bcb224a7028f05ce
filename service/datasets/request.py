"""What users post: a dataset, or more shards for one, the fingerprints by which a dataset is recognized, and checks of
the addresses of its shards: those that users may name, and `upload:up-<12 hex>` for an upload.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, FailFast, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import Connection

from cmcl.contract.dataset import ShardRef
from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.errors import InvalidUri
from cmcl.contract.modality import Frozen, Modality, ModalityPair, ModelName
from cmcl.storage.uris import check_allowed
from service.core.errors import FieldProblem, Unprocessable
from service.core.principal import Principal
from service.core.settings import Settings
from service.database.queries import uploads
from service.database.rows import Fingerprints, UploadRow

MOST_SHARDS = 10_000
SCHEME = "upload:"
_URI = re.compile(r"^upload:(up-[0-9a-f]{12})\Z")


def _check_length(value: object) -> object:
    """Refuse a list that is too long before its items are validated."""
    if isinstance(value, list | tuple) and len(value) > MOST_SHARDS:
        raise PydanticCustomError(
            "too_long", f"there are {len(value)} shards, permitted are {MOST_SHARDS}"
        )
    return value


# Validation ends at the first invalid item: a list of thousands would give as many errors.
Shards = Annotated[
    tuple[ShardRef, ...],
    Field(max_length=MOST_SHARDS),
    FailFast(),
    BeforeValidator(_check_length),
]


class NewShards(Frozen):
    """Shards to add to an open dataset."""

    shards: Shards = ()
    evaluation_shards: Shards = Field(
        default=(), description="held out: measured on, never trained on"
    )

    @property
    def uris(self) -> list[str]:
        """The addresses of both lists."""
        return [ref.uri for ref in (*self.shards, *self.evaluation_shards)]


Posted = TypeVar("Posted", bound=NewShards)


class NewDataset(NewShards):
    """A dataset as it is posted. It is stored unchanged, so that its job can be retried."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "street-scenes",
                    "name": "captions-2026-11",
                    "pair": {"first": "image", "second": "text"},
                    "shards": [{"uri": "s3://captures/2026-11/pairs-000.parquet"}],
                    "evaluation_share": 0.1,
                }
            ]
        }
    )

    model: ModelName
    name: ModelName = Field(description="for people; need not be unique")
    pair: ModalityPair
    evaluation_share: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="share of the rows in `shards` that is held out, chosen by the content of their first "
        "modality: the same rows in any order, also after more shards were added",
    )
    evaluate_only: bool = Field(
        default=False,
        description="true: nothing is learned of this dataset. Recall is measured on all rows of `shards`, with the live "
        "version at once and with every later version; the pair need never have been trained",
    )
    max_bad_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="largest share of rows that may be left out because they cannot be used; by default 0.01 "
        "of raw rows, and no row of features",
    )
    encoders: Annotated[dict[Modality, EncoderIdentity], Field(max_length=2)] = Field(
        default={},
        description="by modality: the encoder that computed the features in these files",
    )
    dry_run: bool = Field(
        default=False,
        description="report how the dataset would be learned, and keep nothing of it",
    )
    sealed: bool = Field(
        default=True,
        description="false: leave it open for more shards; its job starts once it is sealed",
    )

    @property
    def fingerprint(self) -> str:
        """Equal for the same addresses and the same model; names do not count.

        A dry run, and a dataset that is measured only, have another fingerprint than the dataset to learn.
        `max_bad_share` and `encoders` do not count.
        """
        names = {"__all__": {"name"}}
        content = self.model_dump(
            mode="json",
            exclude={
                **dict.fromkeys(("name", "sealed", "max_bad_share", "encoders"), True),
                "shards": names,
                "evaluation_shards": names,
            },
        )
        if self.evaluation_share is None:
            del content["evaluation_share"]
        for flag in ("dry_run", "evaluate_only"):
            if not content[flag]:
                del content[flag]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def fingerprints(self, contents: Mapping[str, str]) -> Fingerprints:
        """Fingerprints by address and by content; the second is equal for the same files in other uploads.

        `contents`: SHA-256 by address, of complete uploads.
        """
        if not contents:
            return Fingerprints(self.fingerprint)
        by_content = self.model_copy(
            update={
                "shards": _by_content(self.shards, contents),
                "evaluation_shards": _by_content(self.evaluation_shards, contents),
            }
        )
        return Fingerprints(self.fingerprint, by_content.fingerprint)


def _by_content(refs: Shards, contents: Mapping[str, str]) -> Shards:
    """Replace addresses of uploads by digests. A reference's own digest is dropped where it says the same."""
    return tuple(
        ShardRef(
            uri=f"sha256:{contents[ref.uri]}",
            sha256=None if ref.sha256 == contents[ref.uri] else ref.sha256,
        )
        if ref.uri in contents
        else ref
        for ref in refs
    )


@dataclass(frozen=True)
class Intake:
    """The caller, the time, the declared encoders, and which of the posted addresses are not permitted.

    Checking an address may access the file system, so it happens before the transaction, which holds the lock of all
    writers. `checked`: by address, why it is not permitted, or None; without uploads. `traceparent`: of the
    request, if it is traced.
    """

    principal: Principal
    now: datetime
    checked: Mapping[str, str | None]
    encoders: Mapping[str, EncoderSpec]
    traceparent: str | None

    @classmethod
    def of(
        cls,
        principal: Principal,
        now: datetime,
        settings: Settings,
        posted: NewShards,
        traceparent: str | None = None,
    ) -> Self:
        """Check the posted addresses against the permitted prefixes. Call it outside a transaction."""
        addresses = {uri for uri in posted.uris if not uri.startswith(SCHEME)}
        checked = {uri: _address_problem(uri, settings.allowed_prefixes) for uri in addresses}
        return cls(principal, now, checked, settings.encoders_by_name, traceparent)


def uri_of(upload: UploadRow) -> str | None:
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


def with_names(connection: Connection, posted: Posted) -> Posted:
    """Return the posted shards with the file names of uploads, which have no name in their addresses."""
    named = {uri: upload for uri in posted.uris if (upload := upload_of(uri)) is not None}
    if not named:
        return posted
    filenames = uploads.filenames(connection, named.values())

    def named_ref(ref: ShardRef) -> ShardRef:
        name = ref.name or filenames.get(named.get(ref.uri, ""))
        return ref.model_copy(update={"name": name})

    return posted.model_copy(
        update={
            "shards": tuple(map(named_ref, posted.shards)),
            "evaluation_shards": tuple(map(named_ref, posted.evaluation_shards)),
        }
    )


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
    held = uploads.lock_shared(connection, [name for name in named.values() if name])
    return {
        uri: _upload_problem(uri, held.get(name or ""), principal) for uri, name in named.items()
    }


def _upload_problem(uri: str, found: UploadRow | None, principal: Principal) -> str | None:
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
