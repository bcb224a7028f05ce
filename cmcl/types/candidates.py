"""A version on trial beside the one that answers."""

from datetime import datetime

from pydantic import Field

from cmcl.contract.rollout import RolloutRule
from cmcl.types.answer import Answer


class Agreement(Answer):
    """How the candidate's scores across one pair compare with the live version's: means."""

    queries: int
    cosine: float | None
    overlap: float | None = Field(description="share of the ten best in common")


class Observed(Answer):
    """What all replicas together have told of the trial."""

    replicas: int
    answered: int
    shadowed: int
    failed: int
    requests: int
    error_share: float
    refused: dict[str, str] = Field(default={}, description="by replica: why it could not load it")
    pairs: dict[str, Agreement] = Field(default={})
    unreadable: dict[str, str] = Field(default={}, description="by object: why it was left out")
    at: datetime | None = None


class Candidate(Answer):
    """The version on trial: who sees it, what ends the trial, and what was seen of it so far."""

    version: int
    share: float
    shadow: float
    rule: RolloutRule
    revision: int
    reason: str
    actor: str
    began_at: datetime
    observed: Observed
