"""An attempt of a job: its specification, progress and failure."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.modality import Frozen, ModelName
from cmcl.contract.model import ModelSpec

# `waiting`: the warm ranks are busy with another attempt.
Phase = Literal[
    "waiting",
    "starting",
    "reading",
    "moments",
    "training",
    "limiting",
    "certifying",
    "writing",
    "done",
]

FailureReason = Literal["invalid_dataset", "training_failed", "store_damaged"]


class JobSpec(Frozen):
    """Everything an attempt needs; written to `runs/<job>/a<attempt>/spec.json` before the attempt is
    submitted.

    `parent` is the version to start from; None means the first version, trained from the seed.
    `resume_from` is the key of an earlier attempt's checkpoint from which this one resumes; None means
    from the beginning. The resulting version is the same.
    """

    job: str
    attempt: int = Field(ge=1)
    model: ModelName
    version: int = Field(ge=1)
    parent: int | None
    spec: ModelSpec
    dataset: DatasetManifest
    resume_from: str | None = None


class Progress(BaseModel):
    """`runs/<job>/a<attempt>/progress.json`: overwritten by rank 0 while the attempt runs.

    Rows, rates and remaining time refer to the current phase, and are absent if it has none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    phase: Phase
    updates_done: int = Field(default=0, ge=0)
    updates_total: int = Field(default=0, ge=0)
    rows_done: int = Field(default=0, ge=0, description="rows read, over all ranks")
    rows_total: int = Field(default=0, ge=0)
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
        description="first-order estimate of how far earlier scores have moved in this job, "
        "relative to their size; the certificate of the finished version is exact",
    )
    eta_seconds: float | None = Field(
        default=None, description="estimated time until the phase ends"
    )
    ranks: int | None = Field(default=None, description="processes that share the batch")
    note: str | None = Field(
        default=None, description="why the attempt has no ranks yet; it starts once it has"
    )
    resumed_at: int | None = Field(
        default=None, description="updates done before the checkpoint that it resumed from"
    )
    at: datetime


class Failure(Frozen):
    """`runs/<job>/a<attempt>/failure.json`: written if another attempt would fail the same way.

    `invalid_dataset`: the new rows. `store_damaged`: stored data of earlier datasets.
    """

    reason: FailureReason
    message: str


def submission_id(job: str, attempt: int) -> str:
    """The id of an attempt at the launcher."""
    return f"{job}-a{attempt}"
