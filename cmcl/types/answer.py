"""What all answers have in common."""

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Frozen. A newer service may tell more than this client knows: it is kept and printed."""

    model_config = ConfigDict(frozen=True, extra="allow")
