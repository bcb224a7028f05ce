"""Jobs, and what happens to them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from cmcl.types.answer import Answer

FINAL_STATES = frozenset({"published", "rejected", "failed", "cancelled"})


class JobProgress(Answer):
    """What the present attempt told last; a figure that its phase does not have is None, or 0."""

    phase: str
    updates_done: int = 0
    updates_total: int = 0
    rows_done: int = Field(default=0, description="rows read, over all ranks")
    rows_total: int = 0
    loss: float | None = Field(default=None, description="of the last batch")
    rows_per_second: float | None = Field(default=None, description="over all ranks")
    gradient_norm: float | None = Field(
        default=None, description="of both heads together, after protection removed its share"
    )
    removed_share: float | None = Field(
        default=None, description="share of the gradient's square that protection removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of how far earlier scores have moved in this job; "
        "the certificate of the version is exact",
    )
    eta_seconds: float | None = Field(default=None, description="until the phase is over")
    ranks: int | None = Field(default=None, description="processes that share the batch")
    note: str | None = Field(default=None, description="why the attempt has no ranks yet")
    resumed_at: int | None = Field(
        default=None, description="updates that a checkpoint spared this attempt"
    )
    at: datetime | None = None


class Approval(Answer):
    """What a person said about a candidate."""

    decision: str
    actor: str
    reason: str
    at: datetime


class Job(Answer):
    """A job: where it stands, and why."""

    id: str
    model: str
    dataset: str
    state: str
    reason: str | None = Field(default=None, description="why it was rejected or has failed")
    message: str | None = Field(default=None, description="the reason in words")
    attempt: int
    progress: JobProgress | None = None
    approval: Approval | None = None
    parent_version: int | None = None
    version: int | None = None
    cancel_requested: bool = False
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.state in FINAL_STATES


class Event(Answer):
    """Something that happened. Progress is told without an `id`: nobody goes on behind it."""

    id: int | None = None
    kind: str
    model: str | None = None
    dataset: str | None = None
    job: str | None = None
    version: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None
