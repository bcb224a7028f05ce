"""Which collections there are: for each name a short log of lives, in objects that the first writer of a number creates.

A name that is deleted can be used again: its next life has another table, and revisions above those of the one before.
A life ends in its table (`CollectionTable.delete`), which refuses later writes; then the log says so.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import Field, StringConstraints, ValidationError

from cmcl.contract.api.endpoint import FeatureType
from cmcl.contract.errors import InvalidVersion, ObjectExists, ObjectNotFound, WorkerError
from cmcl.contract.modality import NAME_PATTERN, Frozen, ModelName
from cmcl.storage import layout
from cmcl.storage.object_store import ObjectStore
from workers.serve.collections.table import CollectionTable, NoCollection

CollectionName = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN), Field(examples=["street-photos"])
]


class CollectionExists(WorkerError):
    """The name is taken by a collection with other properties."""


class CollectionSpec(NamedTuple):
    """The properties of a new collection. `owner` None: see Life."""

    name: str
    model: str
    owner: str | None
    feature_type: FeatureType


class Life(Frozen):
    """`collections/<name>/lives/<n>.json`: a collection, or the end of the one before."""

    format: Literal[1] = 1
    name: CollectionName
    number: int = Field(ge=1)
    model: ModelName
    owner: str | None = Field(
        description="None: for all callers where no keys are required, and for the operator"
    )
    feature_type: FeatureType
    created_at: datetime
    first_revision: int = Field(ge=1)
    ended: int | None = Field(default=None, description="the last revision, where it was deleted")
    mark: str | None = Field(default=None, description="of the request that deleted it")


Permitted = Callable[[Life], bool]


def names(store: ObjectStore) -> list[str]:
    """Return all names, of deleted collections as well until they are swept."""
    return store.folders(layout.collections())


def newest(store: ObjectStore, name: str) -> Life | None:
    """Return the newest life, also of a deleted collection. Raises InvalidVersion."""
    keys = list(store.keys(layout.collection_lives(name)))
    return _read(store, keys[-1]) if keys else None


def existing(store: ObjectStore, name: str, permitted: Permitted) -> Life:
    """Return the collection, if it exists and is visible. Raises NoCollection, InvalidVersion."""
    life = newest(store, name)
    if life is None or life.ended is not None or not permitted(life):
        raise NoCollection(f"there is no collection {name!r}")
    return life


def create(store: ObjectStore, spec: CollectionSpec) -> Life:
    """Create a collection, or return it if it has these properties. Raises CollectionExists."""
    while True:
        before = newest(store, spec.name)
        if before is not None and before.ended is None:
            if (before.model, before.owner, before.feature_type) != spec[1:]:
                raise CollectionExists(
                    f"collection {spec.name!r} exists with other properties; delete it first, or "
                    "choose another name"
                )
            return before
        life = Life(
            name=spec.name,
            number=1 if before is None else before.number + 1,
            model=spec.model,
            owner=spec.owner,
            feature_type=spec.feature_type,
            created_at=datetime.now(UTC),
            first_revision=1 if before is None else (before.ended or 0) + 1,
        )
        try:
            # The table first: what the log names is there.
            table_of(store, life).create(life.feature_type, life.first_revision)
        except ObjectExists:
            pass  # Of a writer that died before it wrote the log, or is about to.
        if _append(store, life):
            return life


def delete(store: ObjectStore, name: str, permitted: Permitted, mark: str | None = None) -> None:
    """Delete a collection with all its items. Raises NoCollection.

    Where the request with this mark has deleted it before, nothing is deleted: by then there may be a new collection
    of that name.
    """
    keys = list(store.keys(layout.collection_lives(name)))
    if mark is not None and any(_read(store, key).mark == mark for key in keys):
        return
    life = existing(store, name, permitted)
    head = table_of(store, life).delete()
    fields = {"number": life.number + 1, "ended": head.revision, "mark": mark}
    _append(store, life.model_copy(update=fields))


def table_of(store: ObjectStore, life: Life) -> CollectionTable:
    """Return the table of this life."""
    key = layout.collection_table(life.name, life.number)
    scheme, _, path, _, _ = urlsplit(store.uri)
    if scheme == "file":
        return CollectionTable(str(Path(unquote(path)) / key))
    from cmcl.storage.s3 import S3Store

    options = {}
    if isinstance(store, S3Store):
        # Lance has the same chain of credentials as boto3, but not its endpoint.
        options = {"aws_endpoint": store.endpoint_url, "aws_region": store.region}
        if store.endpoint_url.startswith("http:"):
            options["allow_http"] = "true"
    return CollectionTable(f"{store.uri}/{key}", options)


def _append(store: ObjectStore, life: Life) -> bool:
    try:
        store.create(
            layout.collection_life(life.name, life.number), life.model_dump_json().encode()
        )
    except ObjectExists:
        return False
    return True


def _read(store: ObjectStore, key: str) -> Life:
    try:
        return Life.model_validate_json(store.read(key))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"])) or "all of it"
        raise InvalidVersion(f"{key} cannot be read ({place}: {wrong['msg']})") from error
    except ObjectNotFound as error:
        raise InvalidVersion(f"{key} was removed") from error
