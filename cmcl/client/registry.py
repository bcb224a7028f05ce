"""Result types of the control plane: models and promotions."""

from datetime import datetime
from typing import Any

from pydantic import Field

from cmcl.client.types import ApiModel, JobProgress
from cmcl.contract.job import JobKind
from cmcl.contract.model import ModalitySpec


class BranchOrigin(ApiModel):
    """The model and version that a branch started from."""

    model: str
    version: int


class Model(ApiModel):
    """A model: its full specification, and its newest and live versions."""

    name: str
    owner: str | None = None
    width: int = Field(description="width of the embeddings")
    modalities: dict[str, ModalitySpec] = Field(
        description="width of each modality's features, and the encoder that it is bound to"
    )
    policy: str | None = Field(description="improve or preserve; None: the model has a method")
    method: str | None = Field(description="in place of a policy")
    max_drift: float | None
    kept_energy: float
    lift: int | None
    training: dict[str, Any]
    seed: int
    head_version: int | None = Field(description="newest version")
    live_version: int | None = Field(description="live version")
    live_generation: int
    branched_from: BranchOrigin | None = None
    created_at: datetime


class ModelGate(ApiModel):
    """Requirements for a candidate, and priority of the model. `revision` grows with each change."""

    max_drift: float | None = None
    min_backward_transfer: float | None = None
    min_gain: float | None = None
    manual_approval: bool = False
    priority: str = Field(default="normal", description="low, normal or high")
    revision: int | None = None


class Live(ApiModel):
    """The live version, and the number of promotions so far."""

    version: int
    generation: int


class Promotion(ApiModel):
    """A change of the live version."""

    generation: int
    version: int
    previous: int | None
    kind: str = Field(description="published, promoted or rolled_back")
    returns_to: int | None = Field(
        default=None, description="generation that a rollback from this one returns to"
    )
    reason: str
    actor: str
    created_at: datetime


class NewestVersion(ApiModel):
    """The newest version of a model at a glance."""

    version: int
    kind: JobKind = "learn"
    dataset: str | None
    dataset_name: str
    created_at: datetime
    stored_at: datetime | None = None
    max_drift: float | None = None
    mean_recall: float | None = Field(default=None, description="mean R@1")
    free_share: dict[str, float] = Field(default={}, description="free share by modality")


class JobCounts(ApiModel):
    """Number of jobs of a model that have not ended."""

    waiting: int
    running: int
    held: int


class SummaryJob(ApiModel):
    """A job of a model at a glance."""

    job: str
    kind: JobKind = "learn"
    dataset: str | None
    dataset_name: str
    state: str
    reason: str | None = None
    message: str | None = None
    attempt: int
    version: int | None = None
    progress: JobProgress | None = None
    created_at: datetime
    state_changed_at: datetime
    finished_at: datetime | None = None


class ModelSummary(ApiModel):
    """A model at a glance: what is live, learned, held and failed."""

    name: str
    owner: str | None = None
    policy: str | None = Field(description="improve or preserve; None: the model has a method")
    method: str | None = Field(description="in place of a policy")
    created_at: datetime
    branched_from: BranchOrigin | None = None
    live_version: int | None
    live_generation: int
    newest: NewestVersion | None = Field(default=None, description="None before the first version")
    drift_bound: float | None = Field(default=None, description="None: unlimited")
    jobs: JobCounts
    current: SummaryJob | None = Field(
        default=None, description="the job in work or held, or else the first that waits"
    )
    last_ended: SummaryJob | None = Field(default=None, description="the job that ended last")
