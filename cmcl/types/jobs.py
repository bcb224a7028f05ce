"""Jobs, and what happens to them."""

from datetime import datetime
from typing import Any

from pydantic import Field

from cmcl.types.answer import Answer

FINAL_STATES = frozenset({"published", "rejected", "failed", "cancelled"})


class JobProgress(Answer):
    """What the present attempt told last."""

    phase: str
    updates_done: int = 0
    updates_total: int = 0
    loss: float | None = None
    rows_per_second: float | None = None
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
