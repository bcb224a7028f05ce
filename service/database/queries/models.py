"""Models, their leases, and their live pointers."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    func,
    insert,
    or_,
    select,
    update,
)

from cmcl.contract.model import ModelSpec
from cmcl.contract.policy import GatePolicy
from service.database.queries import backup, events
from service.database.rows import BranchPoint, Event, ModelRecord
from service.database.tables import jobs, models, trials, versions


def create(
    connection: Connection,
    name: str,
    owner: str,
    spec: ModelSpec,
    now: datetime,
    branch: BranchPoint | None = None,
) -> None:
    """Insert a model without versions. Raises WriteConflict if the name is taken.

    For a branch, the caller inserts the versions that it copies.
    """
    connection.execute(
        insert(models).values(
            name=name,
            owner=owner,
            spec=spec.model_dump(mode="json"),
            policy=GatePolicy().model_dump(mode="json"),
            policy_revision=1,
            head=branch.version if branch else 0,
            live_generation=0,
            live_revision=0,
            mirrored_revision=0,
            branched_from=asdict(branch) if branch else None,
            created_at=now,
        )
    )
    backup.enqueue(connection, "model", name)


def find(connection: Connection, name: str) -> ModelRecord | None:
    """The model of that name, also a deleted one: its name is not used again."""
    row = connection.execute(select(models).where(models.c.name == name)).mappings().one_or_none()
    return None if row is None else _record(row)


def count(connection: Connection, owner: str, made_after: datetime) -> int:
    """Count models of the owner that exist, or were created after `made_after`."""
    counts = or_(models.c.deleted_at.is_(None), models.c.created_at > made_after)
    query = select(func.count()).select_from(models).where(models.c.owner == owner, counts)
    return connection.execute(query).scalar_one()


def has_any(connection: Connection) -> bool:
    """Return whether there was ever a model."""
    return connection.execute(select(models.c.name).limit(1)).first() is not None


def lock(connection: Connection, name: str) -> ModelRecord | None:
    """Lock the model until this transaction ends, and return it."""
    query = select(models).where(models.c.name == name).with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _record(row)


def hold(connection: Connection, name: str) -> None:
    """Lock the model against deletion until this transaction ends; the lock is shared."""
    query = (
        select(models.c.name)
        .where(models.c.name == name)
        .with_for_update(read=True, key_share=True)
    )
    connection.execute(query)


def page(
    connection: Connection, owner: str | None, after: str | None, limit: int
) -> list[ModelRecord]:
    """Models by name, after `after`, without deleted ones."""
    query = select(models).where(models.c.deleted_at.is_(None)).order_by(models.c.name)
    if owner is not None:
        query = query.where(models.c.owner == owner)
    if after is not None:
        query = query.where(models.c.name > after)
    return [_record(row) for row in connection.execute(query.limit(limit)).mappings()]


def with_pointer(connection: Connection) -> list[str]:
    """Names of models that have a live.json, or of which it is to be removed."""
    query = select(models.c.name).where(models.c.live_generation > 0, models.c.swept_at.is_(None))
    return list(connection.scalars(query.order_by(models.c.name)))


def claimable(connection: Connection, service: str, now: datetime, renew_before: datetime) -> bool:
    """Return whether `claim` has anything to do; writes nothing."""
    query = select(models.c.name).where(_has_work(), _is_free(service, now, renew_before))
    return connection.execute(query.limit(1)).first() is not None


def claim(
    connection: Connection, service: str, now: datetime, renew_before: datetime, until: datetime
) -> None:
    """Lease free models with work, and renew the leases of this replica.

    Of several replicas that claim concurrently, each skips what another has locked.
    """
    free = (
        select(models.c.name)
        .where(_has_work(), _is_free(service, now, renew_before))
        .with_for_update(skip_locked=True)
    )
    names = list(connection.scalars(free))
    connection.execute(
        update(models)
        .where(models.c.name.in_(names))
        .values(lease_owner=service, lease_until=until)
    )


def leased(connection: Connection, service: str, now: datetime) -> list[str]:
    """Names of models with work that this replica holds the lease of."""
    query = select(models.c.name).where(
        _has_work(), models.c.lease_owner == service, models.c.lease_until > now
    )
    return list(connection.scalars(query.order_by(models.c.name)))


def release(connection: Connection, service: str) -> None:
    """Release all leases of this replica."""
    connection.execute(
        update(models)
        .where(models.c.lease_owner == service)
        .values(lease_owner=None, lease_until=None)
    )


def advance_head(connection: Connection, name: str, parent: int | None, version: int) -> bool:
    """Compare-and-set: make `version` the newest if `parent` still is. Return whether it was set."""
    statement = (
        update(models)
        .where(models.c.name == name, models.c.head == (parent or 0))
        .values(head=version)
    )
    backup.enqueue(connection, "model", name)
    return connection.execute(statement).rowcount == 1


def set_live(
    connection: Connection, name: str, version: int, generation: int, now: datetime
) -> None:
    """Set the live version; with the model locked."""
    connection.execute(
        update(models)
        .where(models.c.name == name)
        .values(live_version=version, live_generation=generation, **_next_revision(now))
    )


def revise(connection: Connection, name: str, now: datetime) -> None:
    """Increment the revision of live.json; with the model locked."""
    connection.execute(update(models).where(models.c.name == name).values(_next_revision(now)))


def set_mirrored(connection: Connection, name: str, revision: int) -> bool:
    """Record that live.json has this revision. False if that or a later one was recorded."""
    statement = (
        update(models)
        .where(models.c.name == name, models.c.mirrored_revision < revision)
        .values(mirrored_revision=revision)
    )
    return connection.execute(statement).rowcount == 1


def forget_mirrored(connection: Connection, name: str) -> None:
    """Have live.json mirrored again."""
    connection.execute(update(models).where(models.c.name == name).values(mirrored_revision=0))


def set_policy(
    connection: Connection, seen: ModelRecord, policy: GatePolicy, actor: str, now: datetime
) -> None:
    """Set the policy under the next revision, and emit the event; with the model locked."""
    document = policy.model_dump(mode="json")
    values = {"policy": document, "policy_revision": seen.policy_revision + 1}
    connection.execute(update(models).where(models.c.name == seen.name).values(values))
    _emit(connection, seen, "model.policy", now, {"policy": document, "actor": actor})


def set_deleted(connection: Connection, seen: ModelRecord, actor: str, now: datetime) -> None:
    """Mark the model deleted, and emit the event. Its name is not used again, its live.json is to be removed."""
    values = {"deleted_at": now, **_next_revision(now)}
    connection.execute(update(models).where(models.c.name == seen.name).values(values))
    _emit(connection, seen, "model.deleted", now, {"actor": actor})


def _emit(
    connection: Connection,
    model: ModelRecord,
    kind: str,
    now: datetime,
    data: Mapping[str, object],
) -> None:
    emitted = Event(kind=kind, owner=model.owner, model=model.name, data=data)
    events.emit(connection, emitted, now)


def _next_revision(now: datetime) -> dict[str, object]:
    return {"live_revision": models.c.live_revision + 1, "revised_at": now}


def _has_work() -> ColumnElement[bool]:
    """Condition: a pointer to mirror, an unfinished job, a version to store, or a canary.

    Each uses a partial index, so finished rows cost nothing. A deleted model only has its pointer left to mirror.
    """
    unfinished = select(jobs.c.id).where(
        jobs.c.model == models.c.name, jobs.c.finished_at.is_(None)
    )
    unstored = select(versions.c.number).where(
        versions.c.model == models.c.name, versions.c.stored_at.is_(None)
    )
    has_canary = select(trials.c.model).where(
        trials.c.model == models.c.name, trials.c.ended_at.is_(None)
    )
    unfinished_work = or_(unfinished.exists(), unstored.exists(), has_canary.exists())
    return or_(is_unmirrored(), and_(models.c.deleted_at.is_(None), unfinished_work))


def is_unmirrored() -> ColumnElement[bool]:
    """Condition: the opposite of `ModelRecord.is_mirrored`."""
    return and_(models.c.live_generation > 0, models.c.mirrored_revision < models.c.live_revision)


def _is_free(service: str, now: datetime, renew_before: datetime) -> ColumnElement[bool]:
    return or_(
        models.c.lease_until.is_(None),
        models.c.lease_until <= now,
        and_(models.c.lease_owner == service, models.c.lease_until <= renew_before),
    )


def _record(row: RowMapping) -> ModelRecord:
    values = dict(row)
    values["spec"] = ModelSpec.model_validate(values["spec"])
    values["policy"] = GatePolicy.model_validate(values["policy"])
    if values["branched_from"] is not None:
        values["branched_from"] = BranchPoint(**values["branched_from"])
    return ModelRecord(**values)
