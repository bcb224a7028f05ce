"""One attempt at making a version: what it is told, and what it tells while it runs."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from workers.contract.dataset import DatasetManifest
from workers.contract.modality import Frozen, ModelName
from workers.contract.model import ModelSpec

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


class JobSpec(Frozen):
    """Everything an attempt needs; written to `runs/<job>/a<attempt>/spec.json` before Ray is told.

    `parent` is the version to start from; None means the first version, grown from the seed.
    """

    job: str
    attempt: int = Field(ge=1)
    model: ModelName
    version: int = Field(ge=1)
    parent: int | None
    spec: ModelSpec
    dataset: DatasetManifest


class Progress(BaseModel):
    """`runs/<job>/a<attempt>/progress.json`: overwritten by rank 0 as the attempt goes on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    phase: Phase
    updates_done: int = Field(default=0, ge=0)
    updates_total: int = Field(default=0, ge=0)
    loss: float | None = None
    rows_per_second: float | None = None
    at: datetime


class Failure(Frozen):
    """`runs/<job>/a<attempt>/failure.json`: left where another attempt would fail alike."""

    reason: Literal["invalid_dataset", "training_failed"]
    message: str


def submission_id(job: str, attempt: int) -> str:
    """The id under which Ray knows an attempt."""
    return f"{job}-a{attempt}"
