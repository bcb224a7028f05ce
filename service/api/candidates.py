"""The candidate of a job beside its parent: what publishing it would change."""

from fastapi import APIRouter

from cmcl.contract.api.jobs import Bound, Candidate, CandidateDataset, CapacityChange, JobState
from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.gate import Gate
from cmcl.contract.version import LearnedDataset, VersionManifest
from cmcl.storage.versions import read_candidate as read_manifest
from service.api.dependencies import ContextDep, JobPath, Reader
from service.auth.ownership import get_job, get_model
from service.context import Context
from service.core.errors import Conflict, NotFound
from service.database.queries import versions
from service.database.rows import JobRow
from service.jobs import gate

router = APIRouter(prefix="/v1/jobs/{job}/candidate", tags=["jobs"])

_WITH_CANDIDATE = (JobState.GATING, JobState.HELD, JobState.REJECTED)


@router.get("")
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
    report, own = candidate.report, candidate.unlearned or candidate.learned[-1]
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
        bounds=[_to_bound(bound) for bound in gate.bounds(required, candidate)],
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


def _to_bound(bound: gate.Bound) -> Bound:
    return Bound(
        name=bound.name,
        permitted=bound.permitted,
        found=bound.found,
        met=None if bound.permitted is None else bound.shortfall is None,
        source=bound.source,
        message=bound.shortfall.message if bound.shortfall else None,
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
