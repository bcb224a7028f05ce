"""Models, their summaries, and declared encoders."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.drift import DriftWindow
from cmcl.contract.encoder import EncoderIdentity, Media
from cmcl.contract.job import JobKind, Progress
from cmcl.contract.modality import Modality, ModelName
from cmcl.contract.model import Gate, ModelSpec, Policy
from cmcl.contract.responses import KNOWN_OR_TEXT, ApiModel


class BranchOrigin(ApiModel):
    """The version of another model that a branch starts from."""

    model: str
    version: int


class Model(ApiModel, ModelSpec):
    """A model and its state."""

    name: ModelName
    owner: str
    head_version: int | None = Field(description="newest version")
    live_version: int | None = Field(description="version that serves requests")
    live_generation: int = Field(description="number of promotions")
    encoders: dict[Modality, EncoderIdentity] = Field(
        description="by modality: the encoder of its features, fixed by the first dataset with a known one; "
        "missing: any"
    )
    branched_from: BranchOrigin | None
    created_at: datetime


class ModelGate(Gate):
    """The gate of a model. `revision`, the ETag, grows with each change."""

    revision: int | None = None


class NewestVersion(ApiModel):
    """The newest version of a model."""

    version: int
    kind: JobKind
    dataset: str | None = Field(description="null: it learned none")
    dataset_name: str
    created_at: datetime
    stored_at: datetime | None = Field(description="when its manifest was stored")
    max_drift: float | None = Field(
        description="largest drift of an earlier dataset since it was learned; null: there is none"
    )
    mean_recall: float | None = Field(
        description="mean R@1 over the datasets with held-out rows; null: there are none"
    )
    free_share: dict[Modality, float] = Field(
        description="by modality: share of its head's entries that the next dataset may change; empty if heads were "
        "solved from moments"
    )


class JobCounts(ApiModel):
    """Number of jobs that have not ended."""

    waiting: int = Field(description="queued, being prepared, or prepared and not begun")
    running: int = Field(description="with an attempt that is submitted, runs, or is judged")
    held: int = Field(description="with a candidate that waits for approval")


class SummaryJob(ApiModel):
    """A job of a model."""

    job: str
    kind: JobKind
    dataset: str | None = Field(description="null: it merges another model")
    dataset_name: str
    state: Annotated[JobState, KNOWN_OR_TEXT]
    reason: Annotated[FailureReason, KNOWN_OR_TEXT] | None = Field(
        description="why it was rejected or has failed"
    )
    message: str | None = Field(description="the reason as a sentence, or what it waits for")
    attempt: int
    version: int | None = Field(description="version that it creates")
    progress: Progress | None = Field(description="of the newest attempt")
    created_at: datetime
    state_changed_at: datetime
    finished_at: datetime | None


class ModelSummary(ApiModel):
    """A model at a glance."""

    name: str
    owner: str
    policy: Policy | None = Field(description="null: the model has a method")
    method: str | None = Field(description="in place of a policy")
    created_at: datetime
    branched_from: BranchOrigin | None
    live_version: int | None = Field(description="version that serves requests")
    live_generation: int = Field(description="number of promotions")
    newest: NewestVersion | None = Field(description="null before the first version")
    drift_bound: float | None = Field(
        description="largest permitted drift, by the gate or else the specification; null: unlimited"
    )
    jobs: JobCounts
    current: SummaryJob | None = Field(
        description="the job in work or held; without one, the first that waits; null: no job is open"
    )
    last_ended: SummaryJob | None = Field(description="the job that ended last")


class QueryDrift(ApiModel):
    """How far the queries of a model lie from what it has learned."""

    drifting: list[Modality] = Field(description="modalities with drift in one of the last windows")
    windows: dict[Modality, list[DriftWindow]] = Field(
        description="by modality that was queried, oldest first; empty where queries are not watched"
    )


class Encoder(ApiModel):
    """A declared encoder, by whose name models bind a modality to it, and its limits for one raw item."""

    name: str
    title: str = Field(description="kind and model")
    takes: Media
    width: int = Field(description="of its features")
    max_item_bytes: int = Field(description="of one text or file; larger ones are refused")
    max_pixels: int = Field(description="of one image or video frame")
    max_seconds: float = Field(description="of one audio or video")
