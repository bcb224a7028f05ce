"""Queries of the garbage collector.

What can no longer be asked for is marked swept, and what rows without that mark need of the store is kept. A job is marked
like it is moved: against the revision that was read. So a concurrent retry is either first, and nothing is removed, or
finds that it is too late.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
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

from cmcl.contract.api.jobs import JobState
from cmcl.contract.job import READS_ROWS, submission_id
from cmcl.contract.version import LearnedDataset, VersionManifest
from cmcl.storage import layout
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


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended, for the garbage collector."""

    id: str
    model: str
    dataset: str | None
    revision: int
    attempt: int


def ended_jobs(connection: Connection, before: datetime, limit: int) -> list[EndedJob]:
    """Jobs that ended before this time and are not marked swept."""
    query = select(jobs.c.id, jobs.c.model, jobs.c.dataset, jobs.c.revision, jobs.c.attempt).where(
        jobs.c.finished_at.is_not(None), jobs.c.finished_at < before, jobs.c.swept_at.is_(None)
    )
    rows = connection.execute(query.order_by(jobs.c.finished_at).limit(limit))
    return [EndedJob(*row) for row in rows]


def mark_job_swept(connection: Connection, seen: EndedJob, now: datetime) -> None:
    """Mark a job swept, unless it has moved: it cannot continue."""
    if jobs_of.set_swept(connection, seen.id, seen.revision, now):
        # Without this a retry would be permitted after a rebuild.
        if seen.dataset is not None:
            backup.enqueue(connection, "dataset", seen.dataset)
        else:
            backup.enqueue(connection, "model", seen.model)


def mark_models_swept(connection: Connection, before: datetime, now: datetime) -> None:
    """Mark models swept that were deleted before that time, and their datasets deleted that were unlearned.

    While the model had such a dataset, another model that unlearned it did not delete it.
    """
    due = (models.c.deleted_at < before, models.c.swept_at.is_(None))
    connection.execute(update(models).where(*due).values(swept_at=now))
    unlearned = exists().where(jobs.c.dataset == datasets.c.id, jobs.c.kind == "unlearn")
    is_gone = exists().where(models.c.name == datasets.c.model, models.c.swept_at.is_not(None))
    query = select(datasets.c.id).where(datasets.c.deleted_at.is_(None), is_gone, unlearned)
    names = list(connection.scalars(query))
    connection.execute(update(datasets).where(datasets.c.id.in_(names)).values(deleted_at=now))
    backup.enqueue(connection, "dataset", *names)


def unlearned_datasets(connection: Connection) -> list[str]:
    """Datasets that were learned and unlearned, and are not marked swept."""
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


def versions_with_erased_rows(connection: Connection) -> list[VersionRow]:
    """Retired versions with files, from before a row was erased from a dataset that they have learned."""
    query = (
        select(versions.c.model, versions.c.number, jobs.c.dataset)
        .join(jobs, and_(jobs.c.model == versions.c.model, jobs.c.version > versions.c.number))
        .where(
            jobs.c.kind == "erase",
            jobs.c.state == JobState.PUBLISHED,
            versions.c.retired_at.is_not(None),
            versions.c.swept_at.is_(None),
        )
    )
    found = {}
    for model, number, dataset in connection.execute(query).all():
        version = find_version(connection, model, number)
        lines = () if version is None else version.manifest.learned
        if version is not None and any(line.dataset == dataset for line in lines):
            found[model, number] = version
    return list(found.values())


def mark_versions_swept(connection: Connection, found: Iterable[VersionRow], now: datetime) -> None:
    """Mark versions swept: their files are given up."""
    for version in found:
        assert version.retired_at is not None, "a version that can be served keeps its files"
        is_it = (versions.c.model == version.model, versions.c.number == version.number)
        connection.execute(update(versions).where(*is_it).values(swept_at=now))
        backup.enqueue(connection, "model", version.model)


def mark_dataset_swept(connection: Connection, dataset: str, now: datetime) -> None:
    """Mark a dataset swept that was unlearned: no version needs it."""
    connection.execute(update(datasets).where(datasets.c.id == dataset).values(swept_at=now))
    backup.enqueue(connection, "dataset", dataset)


class Needs(NamedTuple):
    """Names that have rows, and the prefixes of keys that these rows need."""

    known: set[str]
    prefixes: set[str]


def needs_of_datasets(connection: Connection) -> Needs:
    """Folders of datasets. What only training and preparation need counts until the dataset is learned.

    What a version has learned is needed as long as a lineage has it, or until it was unlearned in each; anything else
    until it is deleted, with its model or alone, or can no longer be retried.
    """
    ended_well = (JobState.PUBLISHED, JobState.EVALUATED)
    given_up = select(jobs.c.dataset).where(
        jobs.c.kind.in_(READS_ROWS), jobs.c.swept_at.is_not(None), jobs.c.state.not_in(ended_well)
    )
    learned = select(jobs.c.dataset).where(
        jobs.c.kind == "learn", jobs.c.state == JobState.PUBLISHED
    )
    unneeded, protected = set(connection.scalars(given_up)), set(connection.scalars(learned))
    lineage = {line.dataset for line in _lineages(connection, models.c.swept_at.is_(None))}
    query = select(
        datasets.c.id, datasets.c.deleted_at, datasets.c.swept_at, models.c.swept_at.label("model")
    ).join(models, models.c.name == datasets.c.model)
    needs = Needs(set(), set())
    for row in connection.execute(query):
        needs.known.add(row.id)
        if row.id in protected:
            unlearned = row.deleted_at is not None and row.swept_at is None
            if row.id in lineage or unlearned:
                needs.prefixes.add(layout.dataset_prefix(row.id))
        elif row.deleted_at is None and row.model is None and row.id not in unneeded:
            needs.prefixes.update(
                (
                    layout.dataset_prefix(row.id),
                    layout.training_shards(row.id),
                    layout.preparation_files(row.id),
                )
            )
    return needs


def needs_of_jobs(connection: Connection) -> Needs:
    """Folders of attempts, and checkpoints of jobs that may continue."""
    needs = Needs(set(), set())
    for job, attempt, state, swept_at in connection.execute(
        select(jobs.c.id, jobs.c.attempt, jobs.c.state, jobs.c.swept_at)
    ):
        needs.known.add(job)
        if swept_at is None:
            needs.prefixes.add(layout.runs_prefix(job))
            if state != JobState.PUBLISHED:
                numbers = range(1, attempt + 1)
                needs.prefixes.update(layout.run_checkpoints(job, number) for number in numbers)
    return needs


def needs_of_models(connection: Connection) -> Needs:
    """Folders of models."""
    rows = connection.execute(select(models.c.name, models.c.swept_at)).all()
    kept = {layout.model_prefix(row.name) for row in rows if row.swept_at is None}
    return Needs({row.name for row in rows}, kept)


def needs_of_uploads(connection: Connection) -> Needs:
    """Folders of uploads; those of aborted ones go before their rows."""
    known = set(connection.scalars(select(uploads.c.id)))
    return Needs(known, set(map(layout.upload_prefix, known)))


def named_blobs(connection: Connection) -> set[str]:
    """Digests that versions with files name, and those of the moments that jobs may still read."""
    has_files = (versions.c.swept_at.is_(None), models.c.swept_at.is_(None))
    query = select(versions.c.manifest["files"]).where(
        versions.c.model == models.c.name, *has_files
    )
    found = {entry["sha256"] for files in connection.scalars(query) for entry in files.values()}
    lines = _lineages(connection, models.c.swept_at.is_(None))
    return found | {entry.sha256 for line in lines for entry in line.kept.values()}


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
    """Remove up to `limit` responses older than that, and return how many."""
    key = (responses.c.owner, responses.c.key, responses.c.route)
    old = select(*key).where(responses.c.created_at < before).limit(limit)
    return connection.execute(delete(responses).where(tuple_(*key).in_(old))).rowcount


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
