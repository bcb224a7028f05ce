"""Models: what they are, what they ask of a candidate, and which of their versions answers."""

from datetime import datetime
from typing import Any

from pydantic import Field

from cmcl.types.answer import Answer


class BranchOrigin(Answer):
    """Which version of which model a branch started from."""

    model: str
    version: int


class Model(Answer):
    """A model: its specification with every default resolved, and where it stands."""

    name: str
    owner: str | None = None
    width: int = Field(description="of the embeddings")
    modalities: dict[str, int] = Field(description="width of each modality's features")
    method: str
    conditioning: float
    protection: dict[str, Any]
    training: dict[str, Any]
    seed: int
    head_version: int | None = Field(description="newest version")
    live_version: int | None = Field(description="version that answers")
    live_generation: int
    branched_from: BranchOrigin | None = None
    created_at: datetime


class Policy(Answer):
    """What a candidate must show before it is published, and how soon it is trained. `revision` grows with each change."""

    max_drift: float | None = None
    min_backward_transfer: float | None = None
    min_gain: float | None = None
    manual_approval: bool = False
    priority: str = Field(default="normal", description="low, normal or high")
    rollout: dict[str, Any] = Field(default={}, description="how a new version begins")
    revision: int | None = None


class Live(Answer):
    """Which version answers, and since how many promotions."""

    version: int
    generation: int


class Promotion(Answer):
    """One change of the version that answers: who, when, why, from, to."""

    generation: int
    version: int
    previous: int | None
    kind: str = Field(description="published, promoted or rolled_back")
    reason: str
    actor: str
    created_at: datetime
