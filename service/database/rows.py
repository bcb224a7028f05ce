"""Rows of the tables as queries return them: JSON columns in the types of the contract."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypedDict

from pydantic import Field

from cmcl.contract.api.jobs import Approval, FailureReason, JobState
from cmcl.contract.dataset import DatasetManifest, RejectedRow
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.job import READS_ROWS, ErasedRow, JobKind, Progress, VersionRef
from cmcl.contract.modality import Frozen, ModalityPair
from cmcl.contract.model import Gate, ModelSpec
from cmcl.contract.prepare import DatasetReport, PrepareProgress
from cmcl.contract.version import EvaluationResult, VersionManifest

PromotionKind = Literal["published", "promoted", "rolled_back"]
UploadState = Literal["open", "complete", "aborted"]


def random_id() -> str:
    """Twelve hexadecimal digits, for an id after its prefix."""
    return uuid.uuid4().hex[:12]


@dataclass(frozen=True)
class BranchPoint:
    """The version of another model that a branch starts from."""

    model: str
    version: int


@dataclass(frozen=True)
class ModelRow:
    """A model: `head` is its newest version, 0 before the first.

    `encoders`: by modality, the encoder that the first dataset with a known one fixed. `traceparent`: of the job or the
    request that caused `live_revision`; None if that is not traced.
    """

    name: str
    owner: str
    spec: ModelSpec
    gate: Gate
    gate_revision: int
    head: int
    live_version: int | None
    live_generation: int
    live_revision: int
    written_revision: int
    revised_at: datetime | None
    traceparent: str | None
    lease_owner: str | None
    encoders: Mapping[str, EncoderIdentity]
    branched_from: BranchPoint | None
    created_at: datetime
    deleted_at: datetime | None
    swept_at: datetime | None

    @property
    def is_pointer_written(self) -> bool:
        """Whether live.json is up to date; before the first promotion there is none."""
        return self.live_generation == 0 or self.written_revision >= self.live_revision


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of a dataset: by its addresses, and by the contents of the uploads that it names.

    `by_content` is None if it names no upload.
    """

    by_address: str
    by_content: str | None = None


@dataclass(frozen=True)
class DatasetRow:
    """A dataset as it was posted, and its manifest once it was prepared.

    While it is not sealed, shards can be added, and it has no job.
    """

    sequence: int
    id: str
    owner: str
    model: str
    name: str
    pair: ModalityPair
    request: dict[str, object]
    fingerprint: str | None
    content_fingerprint: str | None
    quarantine_reason: str | None
    manifest: DatasetManifest | None
    created_at: datetime
    sealed_at: datetime | None
    deleted_at: datetime | None
    swept_at: datetime | None


class PreparedRows(Frozen):
    """What came of the rows of a dataset, good or bad, when its preparation ended.

    `encoders`: by modality of the pair; None: undeclared. Empty if the dataset cannot be used. `warnings`: about rows
    that are used. `needed_share`: the `max_bad_share` with which a refused dataset would be accepted; None: not known.
    """

    rejected_rows: int
    rejected: tuple[RejectedRow, ...]
    encoders: dict[str, EncoderIdentity | None] = Field(default={})
    warnings: tuple[str, ...] = ()
    needed_share: float | None = None


@dataclass(frozen=True)
class JobRow:
    """A job as it was read; a move succeeds only if its revision is unchanged.

    `dataset` is None and `merges` is not, if it merges. `preparation` numbers the requests to prepare its dataset.
    `eligible_at`: None unless it waits for the scheduler. `traceparent`: the parent of its spans, if it is traced.
    """

    sequence: int
    id: str
    owner: str
    model: str
    kind: JobKind
    dataset: str | None
    dataset_name: str
    merges: VersionRef | None
    erases: ErasedRow | None
    dry_run: bool
    state: JobState
    reason: FailureReason | None
    message: str | None
    revision: int
    attempt: int
    attempts_before_retry: int
    parent_version: int | None
    version: int | None
    progress: Progress | None
    preparation: int
    prepare_progress: PrepareProgress | None
    prepared: PreparedRows | None
    report: DatasetReport | None
    evaluation: EvaluationResult | None
    approval: Approval | None
    cancel_requested: bool
    eligible_at: datetime | None
    traceparent: str | None
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None
    launched_at: datetime | None
    heard_at: datetime | None
    ended_at: datetime | None
    finished_at: datetime | None
    swept_at: datetime | None

    @property
    def own_dataset(self) -> str | None:
        """The dataset whose rows it reads, and which has no other job that does; None if it reads none."""
        return self.dataset if self.kind in READS_ROWS else None


class FiguresByDataset(TypedDict):
    """Measurements of a version by dataset, to six significant digits: recall of every dataset with held-out rows; of
    earlier datasets drift since they were learned, loss, and the lowest loss that heads of this width reach; R@1 of
    datasets that are measured only."""

    recall: dict[str, float]
    recall_at_10: dict[str, float]
    drift: dict[str, float]
    quality: dict[str, float]
    best: dict[str, float]
    evaluation_only: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class VersionOutline:
    """A published version without its manifest, which grows with each dataset that was learned.

    It can be served once it is stored. One that a branch copied has no job. `dataset` is None if it learned none.
    Once it is swept, it has no files. `mean_recall` is of R@1. `figures` is None if it was not asked for.
    """

    model: str
    number: int
    job: str | None
    attempt: int
    parent: int | None
    kind: JobKind
    dataset: str | None
    dataset_name: str
    copied_from: str | None
    created_at: datetime
    stored_at: datetime | None
    retired_at: datetime | None
    swept_at: datetime | None
    pair_first: str
    pair_second: str
    mean_recall: float | None
    max_drift: float | None
    capacity: Mapping[str, Mapping[str, float]]
    figures: FiguresByDataset | None = None


@dataclass(frozen=True, kw_only=True)
class VersionRow(VersionOutline):
    """A published version with its manifest."""

    manifest: VersionManifest


@dataclass(frozen=True)
class PromotionRow:
    """A promotion: a change of the live version."""

    model: str
    generation: int
    version: int
    previous: int | None
    kind: PromotionKind
    returns_to: int | None
    reason: str
    actor: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event, emitted in the transaction of the change. `seen`: its job before that, for subscribers; not stored."""

    kind: str
    owner: str
    model: str
    dataset: str | None = None
    job: str | None = None
    version: int | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    seen: JobRow | None = None


@dataclass(frozen=True, kw_only=True)
class EventRow(Event):
    """An event that was stored."""

    sequence: int
    created_at: datetime


@dataclass(frozen=True)
class UploadRow:
    """An upload as it was announced; once complete, `sha256` is measured, and `file` is the name of its object."""

    id: str
    owner: str
    filename: str
    bytes: int
    sha256: str | None
    state: UploadState
    file: str | None
    created_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True)
class ResponseRow:
    """The response to a request with an idempotency key."""

    fingerprint: str
    status: int
    location: str | None
    body: dict[str, object]
