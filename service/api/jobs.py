"""Jobs: read, cancel, retry, approve, reject; their candidates, attempts and phases."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from sqlalchemy import Connection

from cmcl.contract.api.jobs import (
    FINAL_STATES,
    Approval,
    Attempt,
    AttemptLog,
    Candidate,
    CandidateDataset,
    CapacityChange,
    Job,
    JobPhase,
    JobPhases,
    JobState,
    Prepared,
    ProgressHistory,
    ProgressPoint,
    RejectedSummary,
)
from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.job import Progress, submission_id
from cmcl.contract.model import Gate
from cmcl.contract.version import LearnedDataset, VersionManifest
from cmcl.storage import layout
from cmcl.storage.versions import read_candidate as read_manifest
from service.api.dependencies import (
    ContextDep,
    IdempotencyKey,
    IdempotencyKeyDep,
    JobPath,
    ModelQuery,
    Reader,
    ReasonBody,
    SeenRevision,
    Trainer,
)
from service.api.events import read_page
from service.api.idempotency import respond, response_row
from service.api.pagination import LARGEST_NUMBER, NumberSeek, Page, page
from service.auth.ownership import get_job, get_model
from service.context import Context
from service.core.errors import Conflict, FieldProblem, NotFound
from service.database.engine import Seek
from service.database.queries import attempts, jobs, versions
from service.database.queries.attempts import FIRST_INTERVAL, AttemptRow
from service.database.queries.events import EventFilter
from service.database.queries.versions import Part
from service.database.rows import JobRow, PreparedRows, ResponseRow
from service.jobs import gate, transitions
from service.jobs.scheduler import why_it_waits
from service.jobs.transitions import ActorNote
from service.registry.combining import Requested

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


NOT_PREPARED = dict.fromkeys(Prepared.model_fields) | {"warnings": ()}


def to_prepared(job: JobRow) -> Prepared:
    """What is known of the rows that the job reads."""
    prepared = job.prepared
    encoders = prepared.encoders if prepared else {}
    return Prepared(
        preparation=job.prepare_progress,
        rejected=to_rejected(prepared),
        warnings=prepared.warnings if prepared else (),
        encoders={name: each or "undeclared" for name, each in encoders.items()} or None,
        report=job.report,
    )


def to_job(job: JobRow) -> Job:
    own = Job.model_fields.keys() - Prepared.model_fields.keys()
    return Job.model_validate(
        {
            **{field: getattr(job, field) for field in own},
            **vars(to_prepared(job)),
            "approval": to_approval(job),
        }
    )


def to_approval(job: JobRow | None) -> Approval | None:
    return None if job is None or job.approval is None else Approval(**vars(job.approval))


def accepted_job(found: Requested, key: IdempotencyKey | None = None) -> ResponseRow:
    """The response to a request for a job that reads no rows."""
    status = 202 if found.is_new else 200
    return response_row(key, status, to_job(found.job), f"/v1/jobs/{found.job.id}")


def to_rejected(prepared: PreparedRows | None) -> RejectedSummary | None:
    """Return the rows that were left out; None if there are none."""
    if prepared is None or prepared.rejected_rows == 0:
        return None
    return RejectedSummary(
        rows=prepared.rejected_rows, first=prepared.rejected, needed_share=prepared.needed_share
    )


Action = Callable[[Connection, str, ActorNote], JobRow]


@router.get("")
def list_jobs(
    principal: Reader,
    context: ContextDep,
    seek: NumberSeek,
    model: ModelQuery = None,
    state: Annotated[JobState | None, Query()] = None,
) -> Page[Job]:
    """List jobs in the order of their arrival; with `order=desc`, the newest first."""
    where = {"owner": principal.owner, "model": model, "state": state}
    with context.database.read() as connection:
        found = jobs.page(connection, where, seek.peek())
    return page(found, seek, to_job, lambda job: job.sequence)


@router.get("/{job}")
def read_job(job: JobPath, principal: Reader, context: ContextDep) -> Job:
    """Read a job with its progress, and with what it waits for."""
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
    why = why_it_waits(context, found)
    return to_job(found if why is None else replace(found, message=why))


def get_note(principal: Trainer, context: ContextDep, seen: SeenRevision = None) -> ActorNote:
    """Who acts on a job, and which revision of it they have seen."""
    return ActorNote(principal, context.clock(), seen_revision=seen)


NoteDep = Annotated[ActorNote, Depends(get_note)]


@router.post("/{job}/cancel", status_code=202, response_model=Job)
def cancel_job(
    job: JobPath, note: NoteDep, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Cancel a job. 409 if its candidate is being judged, or it has ended."""
    return _respond(context, key, job, note, transitions.cancel)


@router.post("/{job}/retry", status_code=202, response_model=Job)
def retry_job(
    job: JobPath, note: NoteDep, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Retry a failed or rejected job with new attempts. The next candidate is judged by the gate of that time."""
    return _respond(context, key, job, note, transitions.retry)


@router.post("/{job}/approve", status_code=202, response_model=Job)
def approve_job(
    job: JobPath, body: ReasonBody, note: NoteDep, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Publish a candidate that is held for approval. 409 for a rejected one: change the gate, and retry its job."""
    return _respond(context, key, job, replace(note, reason=body.reason), transitions.approve)


@router.post("/{job}/reject", status_code=202, response_model=Job)
def reject_job(
    job: JobPath, body: ReasonBody, note: NoteDep, context: ContextDep, key: IdempotencyKeyDep
) -> JSONResponse:
    """Reject a candidate that is held for approval."""
    return _respond(context, key, job, replace(note, reason=body.reason), transitions.reject)


def _respond(
    context: Context, key: IdempotencyKey | None, job: str, note: ActorNote, action: Action
) -> JSONResponse:
    def effect(connection: Connection) -> ResponseRow:
        changed = action(connection, job, note)
        return response_row(key, 202, to_job(changed), f"/v1/jobs/{job}")

    return respond(context, key, effect)


_WITH_CANDIDATE = (JobState.GATING, JobState.HELD, JobState.REJECTED)


@router.get("/{job}/candidate")
def read_candidate(job: JobPath, principal: Reader, context: ContextDep) -> Candidate:
    """Read the report of a candidate that is held, judged, or was rejected, beside its parent's.

    404 before there is one, after it was published, and once a rejected one was removed.
    """
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
        required = get_model(connection, found.model, principal).gate
        number = found.parent_version
        parent = None if number is None else versions.find(connection, found.model, number)
    candidate = _manifest(context, found)
    return to_candidate(candidate, parent.manifest if parent else None, required)


def to_candidate(
    candidate: VersionManifest, parent: VersionManifest | None, required: Gate
) -> Candidate:
    """Compare a candidate with its parent and the gate."""
    report, own = candidate.report, candidate.subject
    merged = candidate.merged
    capacity_before = parent.report.capacity if parent else {}
    return Candidate(
        job=candidate.job,
        model=candidate.model,
        attempt=candidate.attempt,
        version=candidate.version,
        parent=candidate.parent,
        kind=candidate.kind,
        dataset=own.dataset if merged is None else None,
        dataset_name=own.name if merged is None else str(merged),
        pair=own.pair,
        created_at=candidate.created_at,
        manual_approval=required.manual_approval,
        bounds=gate.bounds(required, candidate),
        datasets=[to_candidate_dataset(line, candidate, parent) for line in candidate.learned],
        capacity={
            modality: CapacityChange(before=capacity_before.get(modality), after=after)
            for modality, after in report.capacity.items()
        },
        protection=report.protection,
        shrinkage=report.shrinkage,
        solution=report.solution,
        final_loss=report.final_loss,
        updates=report.updates,
        ranks=report.ranks,
        temperature=report.temperature,
        seconds=report.seconds,
    )


def to_candidate_dataset(
    line: LearnedDataset, candidate: VersionManifest, parent: VersionManifest | None
) -> CandidateDataset:
    """Compare a dataset of the candidate's lineage in the version that learned it, in the parent and in the candidate."""
    name, is_new = line.dataset, line.dataset == candidate.dataset
    if candidate.merged is not None:
        is_new = line.version == candidate.version
    before, after = parent.report if parent else None, candidate.report
    drift_before = before.drift.get(name) if before else None
    drift_after = after.drift.get(name)
    recall_before = before.evaluation.get(name) if before else None
    return CandidateDataset(
        dataset=name,
        name=line.name,
        pair=line.pair,
        rows=line.rows,
        version=line.version,
        is_new=is_new,
        recall_learned=line.recall,
        recall_before=after.recall_before if name == candidate.dataset else recall_before,
        recall_after=after.evaluation.get(name),
        drift_before=drift_before.since_learned if drift_before else None,
        drift_after=drift_after.since_learned if drift_after else None,
        drift_against_parent=drift_after.against_parent if drift_after else None,
        overlap=after.overlap.get(name),
        quality_before=before.quality.get(name) if before else None,
        quality_after=after.quality.get(name),
        attainable=line.attainable,
        not_evaluated=after.not_evaluated.get(name),
    )


def _manifest(context: Context, job: JobRow) -> VersionManifest:
    """The candidate's manifest. Raises NotFound, and Conflict if it is damaged."""
    if job.state == JobState.PUBLISHED:
        path = f"/v1/models/{job.model}/versions/{job.version}"
        raise NotFound(f"the candidate of job {job.id} was published: GET {path}")
    if job.state not in _WITH_CANDIDATE:
        raise NotFound(f"job {job.id} is {job.state} and has no candidate to decide about")
    if job.swept_at is not None:
        raise NotFound(f"the candidate of job {job.id} was removed; post the dataset again")
    try:
        return read_manifest(context.store, job.id, job.attempt)
    except ObjectNotFound as error:
        raise NotFound(
            f"the candidate of job {job.id} was removed; post the dataset again"
        ) from error
    except InvalidVersion as error:
        raise Conflict(f"the candidate of job {job.id} is damaged: {error}") from error


AttemptQuery = Annotated[
    int | None,
    Query(ge=1, le=LARGEST_NUMBER, description="number of the attempt; default: the newest"),
]


@router.get("/{job}/attempts")
def list_attempts(
    job: JobPath, principal: Reader, context: ContextDep, seek: NumberSeek
) -> Page[Attempt]:
    """List the attempts of a job, oldest first; with `order=desc`, the newest first."""
    with context.database.read() as connection:
        get_job(connection, job, principal)
        found = attempts.page(connection, job, seek.peek())
    return page(found, seek, _to_attempt, lambda attempt: attempt.number)


@router.get("/{job}/progress")
def read_progress(
    job: JobPath, principal: Reader, context: ContextDep, attempt: AttemptQuery = None
) -> ProgressHistory:
    """Read the progress of an attempt over time: phase, loss, rate, rows, removed share and drift."""
    with context.database.read() as connection:
        number = _number(get_job(connection, job, principal), attempt)
        found = None if number is None else attempts.find(connection, job, number)
        points = [] if number is None else attempts.points(connection, job, number)
    interval = found.progress_interval if found else None
    return ProgressHistory(
        job=job,
        attempt=number,
        interval_seconds=interval or FIRST_INTERVAL,
        points=[ProgressPoint.model_validate({"at": each.at, **each.figures}) for each in points],
    )


@router.get("/{job}/log")
def read_log(
    job: JobPath, principal: Reader, context: ContextDep, attempt: AttemptQuery = None
) -> AttemptLog:
    """Read the end of an attempt's log: of a running one from the cluster, of another one as it was kept.

    404 if the job has had no attempt, or no log was kept. 503 if the cluster does not respond.
    """
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
    number = _number(found, attempt)
    if number is None:
        raise NotFound(f"job {job} has had no attempt yet")
    is_live = number == found.attempt and found.state in (JobState.SUBMITTING, JobState.RUNNING)
    if is_live:
        text = context.launcher.log(submission_id(job, number))
        return AttemptLog(job=job, attempt=number, live=True, text=text)
    try:
        data = context.store.read(layout.run_log(job, number))
    except ObjectNotFound as error:
        raise NotFound(f"no log of attempt {number} of job {job} was kept") from error
    return AttemptLog(job=job, attempt=number, live=False, text=data.decode(errors="replace"))


def _to_attempt(attempt: AttemptRow) -> Attempt:
    return Attempt.model_validate(vars(attempt) | {"attempt": attempt.number})


def _number(job: JobRow, attempt: int | None) -> int | None:
    """The attempt that is asked for, or the newest. Raises NotFound."""
    if attempt is None:
        return job.attempt or None
    if attempt > job.attempt:
        permitted = f"1 to {job.attempt}" if job.attempt else "none yet"
        message = f"job {job.id} has no attempt {attempt}; permitted: {permitted}"
        raise NotFound(message, FieldProblem("attempt", message, attempt))
    return attempt


# Newest events of a job that are read; each attempt has three.
_MOST_EVENTS = 200
_STATE = "job."


@dataclass(frozen=True)
class _Stay:
    """How long the job was in a state. `until` is None while it is in it."""

    state: str
    since: datetime
    until: datetime | None

    def seconds(self, now: datetime) -> float:
        return max(0.0, ((self.until or now) - self.since).total_seconds())


@router.get("/{job}/phases")
def read_phases(job: JobPath, principal: Reader, context: ContextDep) -> JobPhases:
    """Read where the time of a job went, phase by phase."""
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
        made = found.version if found.state == JobState.PUBLISHED else None
        beyond = None if made is None else Seek(made - 1, "asc", 1)
        version = versions.outlines(connection, found.model, Part(beyond))[0] if beyond else None
    newest = read_page(context, EventFilter(job=job), Seek(None, "desc", _MOST_EVENTS)).items
    entered = [(event.kind, event.created_at) for event in reversed(newest)]
    stays = _stays(entered, found.state)
    if version is not None and stays:
        stays.append(_Stay("storing", stays[-1].until or version.created_at, version.stored_at))
    phases = list(_phases(found, stays, context.clock()))
    return JobPhases(job=job, seconds=sum(each.seconds for each in phases), phases=phases)


def _stays(entered: Sequence[tuple[str, datetime]], state: JobState) -> list[_Stay]:
    """The states that the job was in since it was queued the last time, but not the one that it ended in."""
    names = {_STATE + state: str(state) for state in JobState}
    moves = [(names[kind], at) for kind, at in entered if kind in names]
    queued = [place for place, (name, _) in enumerate(moves) if name == JobState.QUEUED]
    moves = moves[queued[-1] :] if queued else moves
    stays = [_Stay(name, since, until) for (name, since), (_, until) in pairwise(moves)]
    return stays if state in FINAL_STATES or not moves else [*stays, _Stay(*moves[-1], None)]


def _phases(job: JobRow, stays: Sequence[_Stay], now: datetime) -> Iterator[JobPhase]:
    runs = [stay for stay in stays if stay.state == JobState.RUNNING]
    for stay in stays:
        if stay.state == JobState.RUNNING and stay is runs[-1]:
            yield from _run(stay, job.progress, now)
        else:
            yield _phase(stay.state, stay.seconds(now), is_present=stay.until is None)


def _run(stay: _Stay, progress: Progress | None, now: datetime) -> Iterator[JobPhase]:
    """What the newest attempt did. Its ranks have another clock, which only places their phases within the stay."""
    seconds, is_present = stay.seconds(now), stay.until is None
    if progress is None or not progress.seconds:
        yield _phase("waiting" if is_present else stay.state, seconds, is_present=is_present)
        return
    spent = sum(progress.seconds.values())
    began = (progress.at - stay.since).total_seconds() - spent
    waited = min(max(0.0, began), max(0.0, seconds - spent))
    rest = max(0.0, seconds - waited - spent)
    yield _phase("waiting", waited)
    for phase, taken in progress.seconds.items():
        is_last = is_present and phase == progress.phase
        yield _phase(phase, taken + (rest if is_last else 0.0), is_present=is_last)
    if not is_present or progress.phase == "done":
        yield _phase("done", rest, is_present=is_present)


def _phase(name: str, seconds: float, *, is_present: bool = False) -> JobPhase:
    return JobPhase(phase=name, seconds=round(seconds, 3), running=is_present)
