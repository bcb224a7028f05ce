"""Result types of the control plane: jobs, events, datasets, uploads, keys, webhooks."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import DatasetManifest, RejectedRow, ShardRef
from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.job import JobKind, VersionRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.prepare import DatasetReport
from cmcl.contract.version import EvaluationResult


class ApiModel(BaseModel):
    """Base class of results. Instances are frozen, and keep fields that a newer service adds.

    Fields can also be read by name, `job["state"]`, including those without an attribute.
    """

    # Validators are built on first use, because most programs use few of these types.
    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    def __getitem__(self, name: str) -> Any:
        """Return a field by name. Raises KeyError."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by name, or `default` if the response does not have it."""
        try:
            return self[name]
        except KeyError:
            return default


Encoders = dict[str, EncoderIdentity | Literal["undeclared"]]

# Of a list: the oldest item or smallest name first, or the other way round.
Order = Literal["asc", "desc"]

FINAL_STATES = frozenset({"published", "reported", "evaluated", "rejected", "failed", "cancelled"})


class JobProgress(ApiModel):
    """Last progress report of the current attempt. Figures that its phase does not have are None or 0."""

    phase: str
    updates_done: int = 0
    updates_total: int = 0
    rows_done: int = Field(default=0, description="rows read, over all ranks")
    rows_total: int = 0
    loss: float | None = Field(default=None, description="loss of the last batch")
    rows_per_second: float | None = Field(
        default=None, description="rows per second, over all ranks"
    )
    gradient_norm: float | None = Field(
        default=None, description="norm of the gradient of both heads, after protection"
    )
    removed_share: float | None = Field(
        default=None, description="share of the squared gradient that protection removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of the relative change of earlier scores in this job; "
        "the certificate of the version is exact",
    )
    eta_seconds: float | None = Field(default=None, description="seconds until the phase ends")
    ranks: int | None = Field(default=None, description="number of ranks")
    note: str | None = Field(default=None, description="why the attempt has no ranks yet")
    resumed_at: int | None = Field(
        default=None, description="update at which the attempt resumed from a checkpoint"
    )
    seconds: dict[str, float] = Field(
        default={}, description="by phase: seconds spent in it, the present one included"
    )
    at: datetime | None = None


class ProgressPoint(ApiModel):
    """Progress of an attempt at one time."""

    at: datetime
    phase: str
    updates_done: int = 0
    updates_total: int = 0
    rows_done: int = Field(default=0, description="rows read, over all ranks")
    rows_total: int = 0
    loss: float | None = Field(default=None, description="loss of the last batch")
    rows_per_second: float | None = None
    gradient_norm: float | None = None
    removed_share: float | None = None
    drift: float | None = None


class ProgressHistory(ApiModel):
    """Progress of an attempt over time: at most 300 points, oldest first."""

    job: str
    attempt: int | None = Field(default=None, description="None: the job has had no attempt")
    interval_seconds: float = Field(description="seconds between two points")
    points: list[ProgressPoint]


class Attempt(ApiModel):
    """An attempt to train a job's dataset."""

    attempt: int
    parent_version: int | None = None
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = Field(default=None, description="None: it has not ended")
    outcome: str | None = Field(
        default=None,
        description="candidate, measured, lost, failed or cancelled; None: it has not ended",
    )
    reason: str | None = None
    message: str | None = None


class JobPhase(ApiModel):
    """A phase of a job: one of its states or, while it runs, what its attempt does."""

    phase: str
    seconds: float = Field(description="how long it took, or has taken so far")
    running: bool = Field(default=False, description="whether it is the present one")


class JobPhases(ApiModel):
    """Where the time of a job went, in order, since it was queued or last retried."""

    job: str
    seconds: float = Field(description="of all phases together")
    phases: list[JobPhase]


class AttemptLog(ApiModel):
    """The end of what an attempt has printed."""

    job: str
    attempt: int
    live: bool = Field(description="whether there may be more")
    text: str


class Preparation(ApiModel):
    """Progress of preparing a dataset: reading, checking and encoding its rows."""

    phase: str
    rows_done: int = 0
    rows_total: int = Field(default=0, description="0 while it is unknown")
    bad_rows: int = Field(default=0, description="rows that are left out")
    rows_per_second: float | None = None
    eta_seconds: float | None = None
    note: str | None = Field(default=None, description="why it does not progress")
    at: datetime | None = None


class Approval(ApiModel):
    """Approval or rejection of a candidate by a person."""

    decision: str
    actor: str
    reason: str
    at: datetime


class RejectedRows(ApiModel):
    """Rows that were left out, or for which the dataset cannot be used."""

    rows: int
    first: tuple[RejectedRow, ...] = Field(
        description="the first 20; `rejected_rows` of the client iterates over all"
    )


class Job(ApiModel):
    """A job with its state, its progress, and what is known of its rows."""

    id: str
    model: str
    kind: JobKind = "learn"
    dataset: str | None = Field(description="None: it merges another model")
    dataset_name: str
    merges: VersionRef | None = None
    dry_run: bool = Field(default=False, description="ends with a report instead of a version")
    state: str
    reason: str | None = Field(default=None, description="why it was rejected or failed")
    message: str | None = Field(default=None, description="the reason, as a message for people")
    attempt: int
    preparation: Preparation | None = Field(
        default=None, description="last progress report of preparing the dataset"
    )
    progress: JobProgress | None = None
    rejected: RejectedRows | None = Field(
        default=None, description="rows that were left out, with the first ones"
    )
    warnings: tuple[str, ...] = Field(
        default=(), description="about rows that are used, such as pictures of one flat colour"
    )
    encoders: Encoders | None = Field(
        default=None, description="encoder by modality; None until the rows are prepared"
    )
    report: DatasetReport | None = Field(default=None, description="result of a dry run")
    evaluation: EvaluationResult | None = Field(
        default=None, description="recall of the live version on a dataset that is measured only"
    )
    approval: Approval | None = None
    parent_version: int | None = None
    version: int | None = None
    cancel_requested: bool = False
    revision: int = Field(
        default=0,
        description="grows with each change of its state; `if_revision` of actions names it",
    )
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.state in FINAL_STATES

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        # Pictures are no part of the start-up of other programs.
        from cmcl.client.notebook import job_html

        return job_html(self)


class Event(ApiModel):
    """An event of the feed. Progress events have no `id`, because a stream cannot resume after them."""

    id: int | None = None
    kind: str
    model: str | None = None
    dataset: str | None = None
    job: str | None = None
    version: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None


class DatasetSummary(ApiModel):
    """A dataset without its shards."""

    id: str
    model: str
    name: str
    pair: ModalityPair
    job: str | None = Field(default=None, description="None while the dataset is open")
    job_state: str | None = Field(default=None, description="state of that job")
    rows: int | None = Field(
        default=None, description="rows to train on; None until it is validated"
    )
    evaluation_rows: int | None = Field(
        default=None, description="rows that are held out; None until it is validated"
    )
    quarantine_reason: str | None = None
    dry_run: bool = Field(default=False, description="prepared for a report, never learned")
    evaluate_only: bool = Field(
        default=False, description="measured with each version, never learned"
    )
    created_at: datetime
    sealed_at: datetime | None = Field(default=None, description="None while it is open")


class Dataset(DatasetSummary):
    """A dataset with its shards."""

    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...] = ()
    evaluation_share: float | None = None
    max_bad_share: float | None = None
    preparation: Preparation | None = Field(
        default=None, description="last progress report of preparing it"
    )
    rejected: RejectedRows | None = Field(
        default=None, description="rows that were left out, with the first ones"
    )
    warnings: tuple[str, ...] = Field(
        default=(), description="about rows that are used, such as pictures of one flat colour"
    )
    encoders: Encoders | None = Field(
        default=None, description="encoder by modality; None until the rows are prepared"
    )
    report: DatasetReport | None = Field(default=None, description="result of a dry run")
    evaluation: EvaluationResult | None = Field(
        default=None,
        description="of a dataset that is measured only: recall in the newest version that was measured",
    )
    manifest: DatasetManifest | None = None


class AcceptedDataset(ApiModel):
    """A dataset and the job that learns or measures it."""

    dataset: DatasetSummary
    job: Job


class Encoder(ApiModel):
    """An encoder that the operator declared. Models bind a modality to it by its name."""

    name: str
    title: str = Field(description="kind and model")
    takes: str = Field(description="text, image, audio, video or numbers")
    width: int


class Upload(ApiModel):
    """An upload. Once complete, datasets can name its `uri`."""

    id: str
    filename: str
    bytes: int
    sha256: str | None = None
    state: str = Field(description="open or complete")
    uri: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class UploadProgress:
    """Bytes of a file that have arrived; or bytes of a folder of raw files that are packed into tars."""

    path: Path
    sent: int
    total: int
    phase: Literal["packing", "sending"] = "sending"
