"""What people decide about a model's datasets while it lives: how soon each is trained, and what a
candidate must show before it becomes a version."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cmcl.contract.modality import Frozen
from cmcl.contract.priority import Priority
from cmcl.contract.rollout import TrialTerms


class RolloutPolicy(TrialTerms):
    """How a new version begins: it answers at once, or shows first on trial what it can do."""

    publish_as: Literal["live", "candidate"] = Field(
        default="live",
        description="live: a new version answers at once, and ends the trial of an older one; "
        "candidate: it is tried first, by this share, shadow and rule, and replaces the one on trial",
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        """Where new versions answer at once, nobody has to see a trial."""
        if self.publish_as == "candidate":
            self.check_can_be_judged()
        return self


class GatePolicy(Frozen):
    """Judged on the candidate's own report; a bound that is not set is not judged.

    No candidate is judged by `priority` and `rollout`. They stand here because, as with the bounds,
    what counts is their value when the next dataset has its turn. A candidate that falls short is
    rejected, with the reason, and the next dataset starts from the newest version. Where a bound needs
    held-out rows and there are none, the candidate is rejected: what was not measured was not shown.
    """

    max_drift: float | None = Field(
        default=None,
        gt=0,
        description="largest relative drift of an earlier dataset's scores since it was learned; "
        "by default the specification's own bound (protection.max_drift), where it has one",
    )
    min_backward_transfer: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="smallest mean change of R@1 of the earlier datasets since each was learned; "
        "-0.02 permits a loss of two points",
    )
    min_gain: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="smallest gain in R@1 on the new dataset's held-out rows over the parent",
    )
    manual_approval: bool = Field(
        default=False, description="hold each candidate that passes until somebody approves it"
    )
    priority: Priority = Field(
        default="normal",
        description="place of the model's attempts in the line for ranks, and in the cluster's queue "
        "where it has one; what runs already is not interrupted for it here",
    )
    rollout: RolloutPolicy = Field(
        default=RolloutPolicy(), description="how a version that was published begins"
    )
