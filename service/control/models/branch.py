"""A branch: a new model that starts from a version of another one, and goes its own way.

It gets copies of all versions up to that one, because a version is measured against those that
learned before it; from then on neither model knows of the other.
"""

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import Connection

from service.control.lookup import get_model, get_version
from service.control.models.create import check_name_is_ours
from service.control.quotas import check_models
from service.database.queries import events, models, versions
from service.database.rows import BranchPoint, Happening, ModelRecord, VersionRecord
from service.errors import Conflict, FieldProblem
from service.principal import Principal

__all__ = ["BranchPoint", "branch"]

# Each has a manifest, which grows with the number of datasets that were learned.
_PAGE = 10


def branch(
    connection: Connection,
    name: str,
    point: BranchPoint,
    principal: Principal,
    now: datetime,
    most: int,
) -> ModelRecord:
    """The new model. Raises NotFound, and Conflict where the name is taken by something else.

    Conflict as well where the owner has `most` models.

    The same branch again answers the model that is there.
    """
    existing = models.find(connection, name)
    if existing is not None:
        check_name_is_ours(existing, principal)
        if existing.branched_from != point:
            message = f"model {name!r} exists, and is no branch of version {point.version} of "
            message += repr(point.model)
            raise Conflict(message, FieldProblem("name", message, name))
        return existing
    source = get_model(connection, point.model, principal)
    _check_can_start(get_version(connection, point.model, point.version, principal))
    check_models(connection, source.owner, most, principal, now)
    models.create(connection, name, source.owner, source.spec, now, point)
    for version in _lineage(connection, point):
        manifest = version.manifest.model_copy(update={"model": name})
        versions.create_copy(connection, manifest, version, now)
    told = {"from_model": point.model, "from_version": point.version, "actor": principal.name}
    happening = Happening(kind="model.branched", owner=source.owner, model=name, data=told)
    events.tell(connection, happening, now)
    return get_model(connection, name, principal)


def _check_can_start(version: VersionRecord) -> None:
    if version.retired_at is not None:
        raise Conflict(f"version {version.number} of {version.model!r} was retired")
    if version.stored_at is None:
        message = f"version {version.number} of {version.model!r} is still being stored"
        raise Conflict(f"{message}; try again shortly")


def _lineage(connection: Connection, point: BranchPoint) -> Iterator[VersionRecord]:
    """All versions up to the point, the first one first; a few manifests at a time are in memory.

    They have to be read: each names its model, so a copy has another one.
    """
    after = 0
    while after < point.version:
        found = versions.page(connection, point.model, after, min(_PAGE, point.version - after))
        yield from found
        after = found[-1].number
