"""What a query answers: one frozen record per table, already in the contract's types."""

from dataclasses import dataclass
from datetime import datetime

from service.states import FailureReason, JobState
from workers.contract.dataset import DatasetManifest
from workers.contract.job import Progress
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec
from workers.contract.version import VersionManifest


@dataclass(frozen=True)
class ModelRecord:
    """A model: `head` is its newest version, 0 before the first."""

    name: str
    spec: ModelSpec
    head: int
    live_version: int | None
    live_generation: int
    mirrored_generation: int
    created_at: datetime


@dataclass(frozen=True)
class DatasetRecord:
    """A dataset as it was posted, and its manifest once it was verified."""

    sequence: int
    id: str
    model: str
    name: str
    pair: ModalityPair
    request: dict[str, object]
    fingerprint: str | None
    quarantine_reason: str | None
    manifest: DatasetManifest | None
    created_at: datetime


@dataclass(frozen=True)
class JobRecord:
    """A job as it was seen; a move succeeds only if it still looks like this."""

    sequence: int
    id: str
    model: str
    dataset: str
    state: JobState
    reason: FailureReason | None
    message: str | None
    attempt: int
    attempts_before_retry: int
    submission_id: str | None
    parent_version: int | None
    version: int | None
    progress: Progress | None
    cancel_requested: bool
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class VersionRecord:
    """A published version; it can answer once it is stored."""

    model: str
    number: int
    job: str
    attempt: int
    parent: int | None
    manifest: VersionManifest
    created_at: datetime
    stored_at: datetime | None


@dataclass(frozen=True)
class PromotionRecord:
    """One change of the version that answers."""

    model: str
    generation: int
    version: int
    previous: int | None
    reason: str
    actor: str
    created_at: datetime


@dataclass(frozen=True)
class AnswerRecord:
    """What a request with an idempotency key was answered."""

    fingerprint: str
    status: int
    location: str | None
    body: dict[str, object]
