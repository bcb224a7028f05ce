"""Jobs, their attempts and phases, and candidates beside their parents."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from cmcl.contract.dataset import RejectedRow
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.job import JobKind, Phase, Progress, VersionRef
from cmcl.contract.modality import Modality, ModalityPair
from cmcl.contract.prepare import DatasetReport, PrepareProgress
from cmcl.contract.responses import KNOWN_OR_TEXT, ApiModel
from cmcl.contract.version import (
    EvaluationResult,
    HeadCapacity,
    Overlap,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    Solution,
)


class JobState(StrEnum):
    """The state of a job. Only the reconciler changes it, except for a user's cancel and retry."""

    QUEUED = "queued"  # waiting; nothing of it runs. A job that reads no rows moves to prepared
    PREPARING = "preparing"  # its rows are read, checked and encoded on the cluster
    PREPARED = "prepared"  # its rows are ready; it waits for the model's earlier jobs
    SUBMITTING = "submitting"  # its attempt has a number and is being submitted to the launcher
    RUNNING = "running"  # the launcher has accepted the attempt
    GATING = "gating"  # its candidate is complete and is being judged
    HELD = "held"  # its candidate passed and waits for manual approval
    PUBLISHED = "published"  # its candidate is a version of the model
    REPORTED = "reported"  # it was a dry run, and its report is complete
    EVALUATED = "evaluated"  # its dataset is measured only, and was measured with the live version
    REJECTED = "rejected"  # its candidate violates the gate; a user can retry
    FAILED = "failed"  # no candidate; a user can retry
    CANCELLED = "cancelled"  # a user stopped it


class FailureReason(StrEnum):
    """Why a job was rejected or has failed."""

    INVALID_DATASET = "invalid_dataset"  # the rows cannot be used; the dataset is quarantined
    ENCODER_MISMATCH = "encoder_mismatch"  # an encoder is not that of the earlier features
    ENCODER_UNAVAILABLE = "encoder_unavailable"  # an encoder does not start, or an item ends it
    PREPARE_DEADLINE = "prepare_deadline"  # its preparation made no progress for too long
    LAUNCHER_REJECTED = "launcher_rejected"  # the cluster rejected the attempt
    QUEUE_DEADLINE = "queue_deadline"  # the cluster accepted the attempt but never started it
    START_DEADLINE = "start_deadline"  # the attempt never reported progress
    RUN_DEADLINE = "run_deadline"  # the attempt did not end in time
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"  # each permitted attempt ended without a candidate
    TRAINING_FAILED = "training_failed"  # the attempt reported a permanent failure
    STORE_DAMAGED = "store_damaged"  # stored data of earlier datasets is damaged
    CANNOT_COMBINE = "cannot_combine"  # what it would unlearn or merge is not what it was
    HEADS_TOO_LARGE = "heads_too_large"  # a replica of the endpoint could not hold the version
    INVALID_CANDIDATE = "invalid_candidate"  # the candidate is damaged or does not match its job
    DRIFT_TOO_LARGE = "drift_too_large"  # an earlier dataset's scores moved beyond the bound
    FORGETTING_TOO_LARGE = (
        "forgetting_too_large"  # earlier datasets lost more recall than permitted
    )
    RESULTS_CHANGED = "results_changed"  # more of the ten best results changed than permitted
    GAIN_TOO_SMALL = "gain_too_small"  # the new dataset gained less recall than asked for
    NOT_MEASURED = "not_measured"  # the gate needs a measurement that the candidate lacks
    REJECTED_BY_HAND = "rejected_by_hand"  # a user rejected it


# Final, except that a user can retry a failed or rejected job.
FINAL_STATES = frozenset(
    {
        JobState.PUBLISHED,
        JobState.REPORTED,
        JobState.EVALUATED,
        JobState.REJECTED,
        JobState.FAILED,
        JobState.CANCELLED,
    }
)

Encoders = dict[str, EncoderIdentity | Literal["undeclared"]]


class Approval(ApiModel):
    """A user's decision about a candidate."""

    decision: Literal["approved", "rejected"]
    actor: str
    reason: str
    at: datetime


class RejectedSummary(ApiModel):
    """Rows that were left out, or for which the dataset cannot be used."""

    rows: int
    first: tuple[RejectedRow, ...] = Field(
        description="the first 20; GET /v1/datasets/{dataset}/rejected-rows has all"
    )
    needed_share: float | None = Field(
        default=None,
        description="the `max_bad_share` with which a refused dataset would be accepted; null if it was not refused, is "
        "not known, or no row is usable",
    )


class Prepared(ApiModel):
    """What is known of the rows of a dataset, of which a job and its dataset tell the same."""

    preparation: PrepareProgress | None = Field(
        description="progress of the preparation of its rows, as of the last one"
    )
    rejected: RejectedSummary | None = Field(description="null if there are none, as far as known")
    warnings: tuple[str, ...] = Field(
        description="about rows that are used, such as pictures of one flat colour; of a dry run, its report has them"
    )
    encoders: Encoders | None = Field(
        description="by modality of the pair: the encoder of its features; null until they are prepared"
    )
    report: DatasetReport | None = Field(description="the result of a dry run")


class Job(Prepared):
    """A job and its state."""

    id: str
    model: str
    kind: JobKind = Field(
        description="learn: the next version learns a dataset; unlearn: it is one that never saw the dataset; "
        "merge: it is one that has learned what two branches have; evaluate: a dataset is measured, and no version made"
    )
    dataset: str | None = Field(description="that it learns or unlearns; null: it merges")
    dataset_name: str = Field(
        description="of a merge, the version that it adds, as `model@version`"
    )
    merges: VersionRef | None = Field(description="version of another model that a merge adds")
    dry_run: bool
    state: Annotated[JobState, KNOWN_OR_TEXT]
    reason: Annotated[FailureReason, KNOWN_OR_TEXT] | None = Field(
        description="why it was rejected or has failed"
    )
    message: str | None = Field(description="the reason as a sentence, or what it waits for")
    attempt: int = Field(description="number of the newest attempt; 0 before the first")
    progress: Progress | None = Field(description="of the newest attempt")
    evaluation: EvaluationResult | None = Field(
        description="recall of the live version on a dataset that is measured only"
    )
    approval: Approval | None = Field(description="a user's decision about its candidate")
    parent_version: int | None = Field(description="version that it starts from")
    version: int | None = Field(description="version that it creates")
    cancel_requested: bool
    revision: int = Field(
        description="grows with each change of its state and with a request to cancel it; in quotes, the ETag for If-Match"
    )
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def has_ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.state in FINAL_STATES


class Attempt(ApiModel):
    """An attempt to train a job's dataset."""

    attempt: int
    parent_version: int | None = Field(description="version that it starts from")
    created_at: datetime = Field(description="when its number was assigned")
    started_at: datetime | None = Field(description="when the cluster was first seen running it")
    ended_at: datetime | None = Field(
        description="when its end was noticed; null: it has not ended"
    )
    outcome: Literal["candidate", "measured", "lost", "failed", "cancelled"] | None = Field(
        description="candidate: it wrote one, which is judged next; measured: so was the dataset, which is not learned; lost: it ended without, and another attempt follows; "
        "failed: so did the job; cancelled: by a user"
    )
    reason: Annotated[FailureReason, KNOWN_OR_TEXT] | None = Field(
        description="why the job failed with it"
    )
    message: str | None = Field(description="the reason, or why it was lost, as a sentence")


class ProgressPoint(ApiModel):
    """Progress at one time. Figures that the phase does not have are 0 or null."""

    at: datetime = Field(description="when it arrived")
    phase: Phase
    updates_done: int = 0
    updates_total: int = 0
    rows_done: int = Field(default=0, description="rows read, over all ranks")
    rows_total: int = 0
    loss: float | None = Field(default=None, description="loss of the last batch")
    rows_per_second: float | None = Field(default=None, description="over all ranks")
    gradient_norm: float | None = Field(
        default=None, description="norm of both heads' gradient, after the mask"
    )
    removed_share: float | None = Field(
        default=None, description="share of the gradient's square that the mask removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of how far earlier scores have moved in this job, relative to their size",
    )


class ProgressHistory(ApiModel):
    """Progress of an attempt over time."""

    job: str
    attempt: int | None = Field(description="null: the job has had no attempt")
    interval_seconds: float = Field(
        description="time between two points; it doubles whenever there are 300 of them"
    )
    points: list[ProgressPoint] = Field(
        description="at most 300, oldest first: the newest progress of each interval, so the last point is the newest. "
        "Empty before training has begun, and once the files of the job were removed"
    )


class AttemptLog(ApiModel):
    """The end of what an attempt has printed."""

    job: str
    attempt: int
    live: bool = Field(description="whether the attempt has not ended, so that there may be more")
    text: str = Field(description="at most 1,000 lines and 64 KiB")


class JobPhase(ApiModel):
    """A phase of a job."""

    phase: str = Field(
        description="a state of the job. While it runs, in place of `running`: `waiting` until the ranks begin, the "
        "phases of its progress, and `done` until its end is noticed. After `gating`, `storing` until its version is live"
    )
    seconds: float = Field(ge=0, description="how long it took, or has taken so far")
    running: bool = Field(default=False, description="whether it is the present one")


class JobPhases(ApiModel):
    """The phases of a job in their order, since it was queued or last retried.

    Those of an attempt are of the newest one; an attempt that was lost is one phase, `running`.
    """

    job: str
    seconds: float = Field(description="of all phases together")
    phases: list[JobPhase]


BoundName = Literal[
    "max_drift", "min_backward_transfer", "min_overlap", "min_gain", "min_agreement"
]
BoundSource = Literal["gate", "specification", "halves"]


class Bound(ApiModel):
    """A bound that the gate can set for candidates, and how this one compares with it."""

    name: BoundName
    permitted: float | None = Field(description="the bound; null: it is not set")
    found: float | None = Field(
        description="the candidate's value; null: it was not measured, or there is no earlier dataset"
    )
    met: bool | None = Field(
        description="whether the candidate meets it, also where there is nothing to compare with; null: it is not set"
    )
    source: BoundSource = Field(
        description="where it is set; max_drift is that of the specification unless the gate sets it. halves: it follows "
        "from what the two halves of each dataset differ in (bounds: auto); of several datasets, this is the one that is "
        "nearest to its bound"
    )
    message: str | None = Field(description="why it is not met")


class CandidateDataset(ApiModel):
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
    overlap: Overlap | None = Field(
        description="of the ten best results, in the parent and in the candidate; null for its own dataset"
    )
    quality_before: Quality | None = Field(description="in the parent")
    quality_after: Quality | None = Field(description="in the candidate; null for its own dataset")
    attainable: float | None = Field(
        description="sum of the squared canonical correlations of its two sides that heads of this width can hold; "
        "null: not computed"
    )
    not_evaluated: str | None = Field(
        description="why its held-out rows were not measured, although it has some"
    )


class CapacityChange(ApiModel):
    """How full a head is for the next dataset."""

    before: HeadCapacity | None = Field(description="in the parent; null: it had not learned it")
    after: HeadCapacity = Field(description="in the candidate")


class Candidate(ApiModel):
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
    bounds: list[Bound] = Field(
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
