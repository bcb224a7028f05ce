"""What a dataset would meet before it is posted."""

from datetime import datetime
from typing import Any

from cmcl.types.answer import Answer


class Preflight(Answer):
    """A question to a version, and its answer once there is one."""

    id: str
    model: str
    version: int
    state: str
    result: dict[str, Any] | None = None
    message: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether there is an answer, or there will be none."""
        return self.state in ("done", "failed")
