"""The steps from a complete candidate to a live version: decide, publish, store its manifest."""

from contextlib import suppress
from datetime import datetime

from sqlalchemy import Connection

from cmcl.contract.api.access import RECEIPT_TYPE
from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.errors import StorageUnavailable, WorkerError
from cmcl.contract.version import LearnedDataset, SignedErasure, VersionManifest
from cmcl.storage import layout
from cmcl.storage.versions import (
    check_complete,
    check_number_is_free,
    heads_bytes,
    publish_manifest,
    read_candidate,
)
from service.auth.ownership import heads_problem
from service.auth.signing import sign
from service.context import Context
from service.database.queries import datasets, jobs, maintenance, models, versions
from service.database.rows import JobRow, ModelRow, VersionRow
from service.database.stale import check_model_not_stale
from service.jobs import gate
from service.jobs.attempts import job_spec
from service.jobs.transitions import fail, move
from service.registry import combining, promotion
from service.telemetry.spans import Attributes, PastSpan


class _LostRace(Exception):
    """Another instance moved the job first; roll back this transaction."""


def decide(context: Context, job: JobRow, model: ModelRow) -> None:
    """gating -> published, held, rejected or failed. An approved candidate met the gate when it was held.

    Raises StaleDatabase; the candidate then waits until the database has been rebuilt.
    """
    check_model_not_stale(context.store, context.database, model.name)
    try:
        candidate = _sound_candidate(context, job, model)
    except WorkerError as error:
        if error.retry_can_help:
            raise
        fail(context, job, FailureReason.INVALID_CANDIDATE, str(error))
        return
    size = heads_bytes(candidate)
    if (message := heads_problem(size, context.settings.heads_bytes_max)) is not None:
        fail(context, job, FailureReason.HEADS_TOO_LARGE, message)
        return
    approved = job.approval is not None and job.approval.decision == "approved"
    shortfall = None if approved else gate.worst_shortfall(model.gate, candidate)
    if shortfall is not None and shortfall.reason is not None:
        move(*(context, job, JobState.REJECTED), reason=shortfall.reason, message=shortfall.message)
    elif shortfall is not None:
        message = f"waits for approval (bounds: auto): {shortfall.message}"
        move(context, job, JobState.HELD, message=message)
    elif model.gate.manual_approval and not approved:
        message = "waits for approval (manual_approval)"
        move(context, job, JobState.HELD, message=message)
    else:
        # Lost: nothing was written. The next pass sees what the other instance did.
        with suppress(_LostRace):
            _publish(context, job, candidate)


def store_version(context: Context, version: VersionRow) -> None:
    """Store the manifest of a published version, then make it live, unless it was retired meanwhile.

    Raises StaleDatabase; nothing is stored then until the database has been rebuilt.
    """
    with context.database.read() as connection:
        job = None if version.job is None else jobs.find(connection, version.job)
    with context.metrics.step("store", job):
        check_model_not_stale(context.store, context.database, version.model)
        assert (version.manifest.model, version.manifest.version) == (version.model, version.number)
        publish_manifest(context.store, version.manifest)
        now = context.clock()
        with context.database.write() as connection:
            if not versions.set_stored(connection, version.model, version.number, now):
                return
            is_live = version.retired_at is None
            if is_live:
                promotion.go_live(connection, version, now)
    seconds = (now - version.created_at).total_seconds()
    context.metrics.stages.labels("storing").observe(seconds)
    if job is not None:
        about: Attributes = {"cmcl.job": job.id, "cmcl.version": version.number}
        context.metrics.spans.add(PastSpan("storing", job.traceparent, seconds, about))
    if job is not None and is_live:
        context.metrics.post_to_live.observe((now - job.created_at).total_seconds())


def _sound_candidate(context: Context, job: JobRow, model: ModelRow) -> VersionManifest:
    candidate = read_candidate(context.store, job.id, job.attempt)
    with context.database.read() as connection:
        theirs = combining.merged_lines(connection, job)
    gate.check_answers(job_spec(context, job, model), _lineage(context, job), candidate, theirs)
    _rescue(context, candidate)
    check_complete(context.store, candidate)
    check_number_is_free(context.store, candidate)
    return candidate


def _rescue(context: Context, candidate: VersionManifest) -> None:
    """Keep its blobs, which may have been written before and named by nothing. Raises StorageUnavailable for a while if
    one of them is being removed: afterwards it is found missing."""
    keys = {layout.blob(entry.sha256) for entry in candidate.own.values()}
    with context.database.write() as connection:
        if not maintenance.rescue(connection, keys):
            raise StorageUnavailable(f"a blob of job {candidate.job} is being removed")


def _lineage(context: Context, job: JobRow) -> tuple[LearnedDataset, ...]:
    if job.parent_version is None:
        return ()
    with context.database.read() as connection:
        parent = versions.find(connection, job.model, job.parent_version)
    assert parent is not None, f"job {job.id} has no parent version {job.parent_version}"
    return parent.manifest.learned


def _publish(context: Context, job: JobRow, candidate: VersionManifest) -> None:
    """In one transaction: advance the head, create the version, finish the job."""
    now = context.clock()
    with context.database.write() as connection:
        assert (candidate.model, candidate.job) == (job.model, job.id)
        assert candidate.version == (candidate.parent or 0) + 1
        if not models.advance_head(connection, job.model, candidate.parent, candidate.version):
            # The model has a version newer than the parent, which this candidate would undo. The
            # dataset is valid, so it is learned again from the newer version.
            message = f"version {candidate.version} exists already; training again from it"
            jobs.move(connection, job, JobState.PREPARED, now, message=message, approval=None)
            return
        versions.create(connection, _signed(context, candidate), now)
        _follow(connection, job, candidate, now)
        if not jobs.move(connection, job, JobState.PUBLISHED, now):
            raise _LostRace


def _signed(context: Context, candidate: VersionManifest) -> VersionManifest:
    """The candidate with a signature of its receipt, if it erased a row and the service has a key."""
    line, key = candidate.erased_from, context.settings.signing_key()
    if line is None or key is None:
        return candidate
    *earlier, receipt = line.erased
    document = SignedErasure(model=candidate.model, dataset=line.dataset, **receipt.model_dump())
    signed = receipt.model_copy(update={"signature": sign(document, RECEIPT_TYPE, key)})
    changed = line.model_copy(update={"erased": (*earlier, signed)})
    learned = tuple(changed if each is line else each for each in candidate.learned)
    return candidate.model_copy(update={"learned": learned})


def _follow(connection: Connection, job: JobRow, candidate: VersionManifest, now: datetime) -> None:
    """What a version that unlearns or merges means for other rows."""
    if candidate.unlearned is not None:
        dataset = datasets.find(connection, candidate.unlearned.dataset)
        home = None if dataset is None else models.find(connection, dataset.model)
        # One that was posted to another model stays a dataset of that model, unless that was deleted.
        is_ours = home is not None and (home.name == job.model or home.deleted_at is not None)
        if dataset is not None and is_ours and dataset.deleted_at is None:
            datasets.set_deleted(connection, dataset, f"job {job.id}", now)
    model = models.find(connection, job.model)
    if candidate.merged is not None and model is not None:
        models.set_encoders(connection, job.model, candidate.encoders | dict(model.encoders))
