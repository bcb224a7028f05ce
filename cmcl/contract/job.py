"""One attempt at making a version: what it is told, and what it tells while it runs."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import DatasetManifest
from cmcl.contract.modality import Frozen, ModelName
from cmcl.contract.model import ModelSpec

# `waiting`: for the ranks, which learn another attempt.
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
    """Everything an attempt needs; written to `runs/<job>/a<attempt>/spec.json` before Ray is told.

    `parent` is the version to start from; None means the first version, grown from the seed.
    `resume_from` is the key of the checkpoint, left by an earlier attempt, that this one goes on from;
    None means from the beginning. Either way the same version comes of it.
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
    """`runs/<job>/a<attempt>/progress.json`: overwritten by rank 0 as the attempt goes on.

    Rows, rates and the time that is left are those of the present phase, and absent where it has none.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    phase: Phase
    updates_done: int = Field(default=0, ge=0)
    updates_total: int = Field(default=0, ge=0)
    rows_done: int = Field(default=0, ge=0, description="rows read, over all ranks")
    rows_total: int = Field(default=0, ge=0)
    loss: float | None = Field(default=None, description="of the last batch")
    rows_per_second: float | None = Field(default=None, description="over all ranks")
    gradient_norm: float | None = Field(
        default=None, description="of both heads together, after the mask"
    )
    removed_share: float | None = Field(
        default=None, description="share of the gradient's square that the mask removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of how far earlier scores have moved in this job, "
        "relative to their size; the certificate of the finished version is exact",
    )
    eta_seconds: float | None = Field(default=None, description="until the phase is over")
    ranks: int | None = Field(default=None, description="processes that share the batch")
    note: str | None = Field(
        default=None, description="why the attempt has no ranks yet; until it has, it has not begun"
    )
    resumed_at: int | None = Field(
        default=None, description="updates that a checkpoint spared this run"
    )
    at: datetime


class Failure(Frozen):
    """`runs/<job>/a<attempt>/failure.json`: left where another attempt would fail alike.

    `invalid_dataset`: the new rows. `store_damaged`: what earlier datasets left, not the new rows.
    """

    reason: FailureReason
    message: str


def submission_id(job: str, attempt: int) -> str:
    """The id under which Ray knows an attempt."""
    return f"{job}-a{attempt}"
