"""The candidate of a job beside its parent: what publishing it would change."""

from datetime import datetime
from typing import Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cmcl.contract.errors import InvalidVersion, ObjectNotFound
from cmcl.contract.gate import Gate
from cmcl.contract.job import JobKind
from cmcl.contract.modality import Modality, ModalityPair
from cmcl.contract.version import (
    HeadCapacity,
    LearnedDataset,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    Solution,
    VersionManifest,
)
from cmcl.storage.versions import read_candidate as read_manifest
from service.api.dependencies import ContextDep, JobPath, Reader
from service.auth.ownership import get_job, get_model
from service.context import Context
from service.core.errors import Conflict, NotFound
from service.core.states import JobState
from service.database.queries import versions
from service.database.rows import JobRow
from service.jobs import gate

router = APIRouter(prefix="/v1/jobs/{job}/candidate", tags=["jobs"])

_WITH_CANDIDATE = (JobState.GATING, JobState.HELD, JobState.REJECTED)


class BoundView(BaseModel):
    """A bound that the gate can set for candidates, and how this one compares with it."""

    name: Literal["max_drift", "min_backward_transfer", "min_gain"]
    permitted: float | None = Field(description="the bound; null: it is not set")
    found: float | None = Field(
        description="the candidate's value; null: it was not measured, or there is no earlier dataset"
    )
    met: bool | None = Field(
        description="whether the candidate meets it, also where there is nothing to compare with; null: it is not set"
    )
    source: Literal["gate", "specification"] = Field(
        description="where it is set; max_drift is that of the specification unless the gate sets it"
    )
    message: str | None = Field(description="why it is not met")

    @classmethod
    def of(cls, bound: gate.Bound) -> Self:
        """Create it from the gate's finding."""
        return cls(
            name=bound.name,
            permitted=bound.permitted,
            found=bound.found,
            met=None if bound.permitted is None else bound.shortfall is None,
            source=bound.source,
            message=bound.shortfall.message if bound.shortfall else None,
        )


class CandidateDataset(BaseModel):
    """A dataset of the candidate's lineage: in the version that learned it, in the parent, in the candidate."""

    dataset: str
    name: str
    pair: ModalityPair
    rows: int = Field(description="rows that were trained on")
    version: int = Field(description="version that learned it; the candidate's for its own dataset")
    is_new: bool = Field(
        description="whether the parent does not have it: the candidate's own dataset, and what it merges"
    )
    recall_learned: Recall | None = Field(
        description="in the version that learned it; null: it has no held-out rows"
    )
    recall_before: Recall | None = Field(
        description="in the parent; a modality that is new there starts from the seed"
    )
    recall_after: Recall | None = Field(description="in the candidate")
    drift_before: float | None = Field(
        description="of its scores since it was learned, in the parent; null: the parent learned it, or did not have it"
    )
    drift_after: float | None = Field(
        description="the same in the candidate; null for its own dataset"
    )
    drift_against_parent: float | None = Field(description="of its scores, by the candidate alone")
    quality_before: Quality | None = Field(description="in the parent")
    quality_after: Quality | None = Field(description="in the candidate; null for its own dataset")
    attainable: float | None = Field(
        description="sum of the squared canonical correlations of its two sides that heads of this width can hold; "
        "null: not computed"
    )
    not_evaluated: str | None = Field(
        description="why its held-out rows were not measured, although it has some"
    )

    @classmethod
    def of(
        cls, line: LearnedDataset, candidate: VersionManifest, parent: VersionManifest | None
    ) -> Self:
        """Create it for a line of the candidate's lineage."""
        name, is_new = line.dataset, line.dataset == candidate.dataset
        if candidate.merged is not None:
            is_new = line.version == candidate.version
        before, after = parent.report if parent else None, candidate.report
        drift_before = before.drift.get(name) if before else None
        drift_after = after.drift.get(name)
        recall_before = before.evaluation.get(name) if before else None
        return cls(
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


class CapacityChange(BaseModel):
    """How full a head is for the next dataset."""

    before: HeadCapacity | None = Field(description="in the parent; null: it had not learned it")
    after: HeadCapacity = Field(description="in the candidate")


class CandidateView(BaseModel):
    """A candidate that waits for a decision, beside its parent."""

    job: str
    model: str
    attempt: int
    version: int = Field(description="number of the version that it would be")
    parent: int | None = Field(description="version that it was trained from; null: the first one")
    kind: JobKind
    dataset: str | None = Field(description="that it learns or unlearns; null: it merges")
    dataset_name: str = Field(description="of a merge, the version as `model@version`")
    pair: ModalityPair = Field(description="of a merge, that of the last dataset")
    created_at: datetime
    manual_approval: bool = Field(description="whether the gate asks for approval")
    bounds: list[BoundView] = Field(
        description="the model's current gate: every bound, set or not; an approved candidate is published "
        "independently of them"
    )
    datasets: list[CandidateDataset] = Field(
        description="its lineage in the order of learning; its own dataset, or those that it merges, come last"
    )
    capacity: dict[Modality, CapacityChange] = Field(
        description="empty if heads were solved from moments, which closes no entry"
    )
    protection: dict[Modality, Protection] = Field(description="what was protected from change")
    shrinkage: Shrinkage | None = Field(
        description="what keeping the specification's max_drift cost; null: nothing"
    )
    solution: Solution | None = Field(description="null: the policy is not improve")
    final_loss: float = Field(description="loss of the last batch of its training")
    updates: int
    ranks: int
    temperature: float | None = Field(description="at the end of its training")
    seconds: dict[str, float] = Field(description="time spent in each part of the job")

    @classmethod
    def of(cls, candidate: VersionManifest, parent: VersionManifest | None, required: Gate) -> Self:
        """Create it from the manifests and the gate."""
        report, own = candidate.report, candidate.unlearned or candidate.learned[-1]
        merged = candidate.merged
        capacity_before = parent.report.capacity if parent else {}
        return cls(
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
            bounds=[BoundView.of(bound) for bound in gate.bounds(required, candidate)],
            datasets=[CandidateDataset.of(line, candidate, parent) for line in candidate.learned],
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


@router.get("")
def read_candidate(job: JobPath, principal: Reader, context: ContextDep) -> CandidateView:
    """Read the report of a candidate that is held, judged, or was rejected, beside its parent's.

    404 before there is one, after it was published, and once a rejected one was removed.
    """
    with context.database.read() as connection:
        found = get_job(connection, job, principal)
        required = get_model(connection, found.model, principal).gate
        number = found.parent_version
        parent = None if number is None else versions.find(connection, found.model, number)
    candidate = _manifest(context, found)
    return CandidateView.of(candidate, parent.manifest if parent else None, required)


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
