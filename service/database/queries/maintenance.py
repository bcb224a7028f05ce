"""Queries of the garbage collector.

A job is marked swept like it is moved: against the revision that was read. So a concurrent retry is either
first, and nothing is removed, or finds that it is too late.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    cast,
    delete,
    exists,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from cmcl.contract.job import READS_ROWS, JobKind, submission_id
from cmcl.contract.version import LearnedDataset, VersionManifest
from service.core.states import JobState
from service.database.queries import backup
from service.database.queries import jobs as jobs_of
from service.database.queries.versions import find as find_version
from service.database.rows import VersionRow
from service.database.tables import (
    datasets,
    jobs,
    models,
    orphans,
    responses,
    uploads,
    versions,
)


def running_attempts(connection: Connection) -> set[str]:
    """Submission ids of the attempts that run, or are about to."""
    query = select(jobs.c.id, jobs.c.attempt).where(
        jobs.c.finished_at.is_(None),
        jobs.c.state.in_((JobState.SUBMITTING, JobState.RUNNING)),
    )
    return {submission_id(job, attempt) for job, attempt in connection.execute(query)}


Kind = Literal["datasets", "jobs", "uploads", "models"]

_IDS: dict[Kind, Any] = {
    "datasets": datasets.c.id,
    "jobs": jobs.c.id,
    "uploads": uploads.c.id,
    "models": models.c.name,
}
_SWEPT: dict[Kind, Any] = {"jobs": jobs.c.swept_at, "models": models.c.swept_at}


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended, for the garbage collector."""

    id: str
    model: str
    kind: JobKind
    dataset: str | None
    revision: int
    state: JobState
    attempts: int

    @property
    def own_dataset(self) -> str | None:
        """The dataset whose rows it reads, and which has no other job that does."""
        return self.dataset if self.kind in READS_ROWS else None


@dataclass(frozen=True)
class Learned:
    """A dataset, and the job that learned it at its `attempts`-th attempt."""

    id: str
    job: str
    attempts: int


def ended_jobs(connection: Connection, before: datetime, limit: int) -> list[EndedJob]:
    """Jobs that ended before this time and are not marked swept."""
    columns = ("id", "model", "kind", "dataset", "revision", "state", "attempt")
    query = (
        select(*(jobs.c[name] for name in columns))
        .where(
            jobs.c.finished_at.is_not(None),
            jobs.c.finished_at < before,
            jobs.c.swept_at.is_(None),
        )
        .order_by(jobs.c.finished_at)
        .limit(limit)
    )
    return [
        EndedJob(
            row.id,
            row.model,
            row.kind,
            row.dataset,
            row.revision,
            JobState(row.state),
            row.attempt,
        )
        for row in connection.execute(query)
    ]


def mark_job_swept(connection: Connection, seen: EndedJob, now: datetime) -> bool:
    """Mark a job swept: it cannot continue. False if it has moved."""
    if not jobs_of.set_swept(connection, seen.id, seen.revision, now):
        return False
    # Without this a retry would be permitted after a rebuild.
    if seen.dataset is not None:
        backup.enqueue(connection, "dataset", seen.dataset)
    else:
        backup.enqueue(connection, "model", seen.model)
    return True


def learned_datasets(connection: Connection, limit: int) -> list[Learned]:
    """Datasets that have a version, and whose training files may still be stored."""
    query = (
        select(datasets.c.id, jobs.c.id, jobs.c.attempt)
        .join_from(datasets, jobs, _learned())
        .where(datasets.c.swept_at.is_(None), datasets.c.deleted_at.is_(None))
        .order_by(datasets.c.sequence)
        .limit(limit)
    )
    return [Learned(*row) for row in connection.execute(query)]


def deleted_datasets(connection: Connection, limit: int) -> list[str]:
    """Deleted datasets that no version has learned, whose files may still be stored."""
    running = and_(jobs.c.dataset == datasets.c.id, jobs.c.finished_at.is_(None))
    query = select(datasets.c.id).where(
        datasets.c.swept_at.is_(None),
        datasets.c.deleted_at.is_not(None),
        ~exists().where(or_(running, _learned())),
    )
    return list(connection.scalars(query.order_by(datasets.c.sequence).limit(limit)))


def unlearned_datasets(connection: Connection) -> list[str]:
    """Datasets that were learned and unlearned, whose files may still be stored."""
    query = select(datasets.c.id).where(
        datasets.c.swept_at.is_(None),
        datasets.c.deleted_at.is_not(None),
        exists().where(_learned()),
    )
    return list(connection.scalars(query.order_by(datasets.c.sequence)))


def versions_with(connection: Connection, dataset: str) -> list[VersionRow]:
    """Versions of models that exist, and of deleted ones with files, whose lineage has the dataset."""
    query = (
        select(versions.c.model, versions.c.number)
        .join(models, models.c.name == versions.c.model)
        .where(models.c.swept_at.is_(None), cast(versions.c.manifest, Text).contains(dataset))
    )
    found: list[VersionRow] = []
    for model, number in connection.execute(
        query.order_by(versions.c.model, versions.c.number)
    ).all():
        version = find_version(connection, model, number)
        if version is not None and any(
            line.dataset == dataset for line in version.manifest.learned
        ):
            found.append(version)
    return found


def mark_versions_swept(connection: Connection, found: Iterable[VersionRow], now: datetime) -> None:
    """Mark versions swept: their files are given up."""
    for version in found:
        is_it = (versions.c.model == version.model, versions.c.number == version.number)
        connection.execute(update(versions).where(*is_it).values(swept_at=now))
        backup.enqueue(connection, "model", version.model)


def mark_datasets_swept(connection: Connection, names: Collection[str], now: datetime) -> None:
    """Mark datasets swept: the files that only their jobs needed are removed."""
    connection.execute(
        update(datasets)
        .where(datasets.c.id.in_(names), datasets.c.swept_at.is_(None))
        .values(swept_at=now)
    )
    backup.enqueue(connection, "dataset", *names)


def mark_unlearned_deleted(connection: Connection, names: Collection[str], now: datetime) -> None:
    """Mark those deleted that were unlearned, so that their files are removed once no version needs them."""
    unlearned = exists().where(jobs.c.dataset == datasets.c.id, jobs.c.kind == "unlearn")
    due = and_(datasets.c.id.in_(names), datasets.c.deleted_at.is_(None), unlearned)
    connection.execute(update(datasets).where(due).values(deleted_at=now, swept_at=None))
    backup.enqueue(connection, "dataset", *names)


def deleted_models(connection: Connection, before: datetime, limit: int) -> list[str]:
    """Models deleted before that time, whose files may still be stored."""
    query = select(models.c.name).where(models.c.deleted_at < before, models.c.swept_at.is_(None))
    return list(connection.scalars(query.order_by(models.c.name).limit(limit)))


def datasets_of(connection: Connection, model: str) -> set[str]:
    """Datasets that were posted to the model, and those in its lineage whose own model was deleted."""
    own = set(connection.scalars(select(datasets.c.id).where(datasets.c.model == model)))
    inherited = {line.dataset for line in _lineages(connection, models.c.name == model)} - own
    query = select(datasets.c.id).where(
        datasets.c.id.in_(inherited),
        datasets.c.model == models.c.name,
        models.c.deleted_at.is_not(None),
    )
    return own | set(connection.scalars(query))


def protected_datasets(connection: Connection, before: datetime) -> set[str]:
    """Datasets in lineages of branches and of models that merged, which exist or were deleted after that time."""
    is_there = or_(models.c.deleted_at.is_(None), models.c.deleted_at >= before)
    other = versions.alias()
    merged = exists().where(other.c.model == models.c.name, other.c.kind == "merge")
    is_joined = or_(models.c.branched_from.is_not(None), merged)
    return {line.dataset for line in _lineages(connection, and_(is_joined, is_there))}


def mark_model_swept(connection: Connection, model: str, now: datetime) -> None:
    """Mark a model swept: its files are removed."""
    connection.execute(update(models).where(models.c.name == model).values(swept_at=now))


def known(connection: Connection, kind: Kind, names: Sequence[str]) -> set[str]:
    """Those of the names that have a row."""
    return set(connection.scalars(select(_IDS[kind]).where(_IDS[kind].in_(names))))


def swept(connection: Connection, kind: Kind, names: Sequence[str]) -> set[str]:
    """Those of the names that are marked swept altogether, so that no files should be left."""
    if kind == "datasets":
        return set(connection.scalars(_swept_datasets().where(datasets.c.id.in_(names))))
    if kind not in _SWEPT:
        return set()
    query = select(_IDS[kind]).where(_IDS[kind].in_(names), _SWEPT[kind].is_not(None))
    return set(connection.scalars(query))


def named_blobs(connection: Connection) -> set[str]:
    """Digests that versions with files name, and those of the moments that jobs may still read."""
    has_files = (versions.c.swept_at.is_(None), models.c.swept_at.is_(None))
    query = select(versions.c.manifest["files"]).where(
        versions.c.model == models.c.name, *has_files
    )
    found = {entry["sha256"] for files in connection.scalars(query) for entry in files.values()}
    lines = _lineages(connection, models.c.swept_at.is_(None))
    return found | {line.moments.sha256 for line in lines}


def known_versions(connection: Connection) -> set[tuple[str, int]]:
    """Model and number of each version that has a row."""
    return {
        (model, number)
        for model, number in connection.execute(select(versions.c.model, versions.c.number))
    }


def open_attempts(connection: Connection) -> list[tuple[str, int]]:
    """Job and number of each attempt whose candidate may be published."""
    query = select(jobs.c.id, jobs.c.attempt).where(
        jobs.c.finished_at.is_(None), jobs.c.attempt > 0
    )
    return [(job, attempt) for job, attempt in connection.execute(query)]


def update_orphans(
    connection: Connection, root: str, found: Collection[str], before: datetime, now: datetime
) -> list[str]:
    """Note what nothing names under a root, and forget what is gone or is named again.

    Returns what nothing has named since that time, and what an interrupted removal left: it is doomed from now on.
    """
    of_root = orphans.c.key.startswith(root, autoescape=True)
    since = dict(connection.execute(select(orphans.c.key, orphans.c.seen_at).where(of_root)).all())
    _forget(connection, since.keys() - set(found))
    due = and_(of_root, orphans.c.seen_at <= before)
    connection.execute(update(orphans).where(due).values(doomed=True))
    new = [{"key": key, "seen_at": now, "doomed": False} for key in found if key not in since]
    if new:
        connection.execute(insert(orphans), new)
    return list(connection.scalars(select(orphans.c.key).where(of_root, orphans.c.doomed)))


def rescue(connection: Connection, keys: Collection[str]) -> bool:
    """Forget that nothing named these, before something does. False if one of them is being removed."""
    _forget(connection, keys)
    return not any(
        connection.execute(select(orphans.c.key).where(orphans.c.key == key)).first()
        for key in keys
    )


def _forget(connection: Connection, keys: Iterable[str]) -> None:
    for key in keys:
        is_it = and_(orphans.c.key == key, orphans.c.doomed.is_(False))
        connection.execute(delete(orphans).where(is_it))


def forget_removed(connection: Connection, keys: Iterable[str]) -> None:
    """Forget orphans that were removed."""
    for key in keys:
        connection.execute(delete(orphans).where(orphans.c.key == key))


def forget_responses(connection: Connection, before: datetime, limit: int) -> int:
    """Remove up to `limit` responses and abandoned claims older than that, and return how many."""
    key = (responses.c.owner, responses.c.key, responses.c.route)
    old = select(*key).where(responses.c.created_at < before).limit(limit)
    return connection.execute(delete(responses).where(tuple_(*key).in_(old))).rowcount


def _swept_datasets() -> Select[tuple[str]]:
    """Datasets that are marked swept and have no version. Of the others, moments and held-out rows are needed.

    One that was unlearned is marked when no version needs it.
    """
    is_free = or_(datasets.c.deleted_at.is_not(None), ~exists().where(_learned()))
    return select(datasets.c.id).where(datasets.c.swept_at.is_not(None), is_free)


def _learned() -> ColumnElement[bool]:
    """Condition: the job has learned the dataset."""
    return and_(
        jobs.c.dataset == datasets.c.id,
        jobs.c.kind == "learn",
        jobs.c.state == JobState.PUBLISHED,
    )


def _lineages(connection: Connection, condition: ColumnElement[bool]) -> Iterator[LearnedDataset]:
    """What the newest versions of these models have learned, or others that can be branched."""
    other = versions.alias()
    # A version has learned what the newest one has, but for what was unlearned after it.
    unlearned = exists().where(other.c.model == models.c.name, other.c.kind == "unlearn")
    query = select(versions.c.manifest).where(
        condition,
        versions.c.model == models.c.name,
        or_(
            versions.c.number == models.c.head,
            and_(versions.c.retired_at.is_(None), unlearned),
        ),
    )
    for document in connection.scalars(query):
        yield from VersionManifest.model_validate(document).learned
