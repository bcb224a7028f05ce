"""What a dataset would meet before it is posted."""

from datetime import datetime

from cmcl.contract.modality import ModalityPair
from cmcl.contract.preflight import Outlook
from cmcl.types.answer import Answer


class Preflight(Answer):
    """A question to a version, and its answer once there is one."""

    id: str
    model: str
    version: int
    pair: ModalityPair
    state: str
    attempt: int = 0
    outlook: Outlook | None = None
    message: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether there is an answer, or there will be none."""
        return self.state in ("done", "failed")
