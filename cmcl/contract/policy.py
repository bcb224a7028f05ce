"""A model's policy: the priority of its attempts, the conditions for publishing a candidate, and the
rollout of new versions."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cmcl.contract.modality import Frozen
from cmcl.contract.priority import Priority
from cmcl.contract.rollout import TrialTerms


class RolloutPolicy(TrialTerms):
    """How a new version is rolled out: live at once, or first as a canary."""

    publish_as: Literal["live", "candidate"] = Field(
        default="live",
        description="live: a new version becomes live at once and ends a running canary; "
        "candidate: it starts as a canary with this share, shadow and rule, and replaces a running one",
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        """Share and shadow may both be 0 if there are no canaries."""
        if self.publish_as == "candidate":
            self.check_can_be_judged()
        return self


class GatePolicy(Frozen):
    """Conditions that a candidate's report must meet, besides `priority` and `rollout`.

    A bound that is not set is not checked. The values at the time of the next job count. A candidate
    that violates a bound is rejected with the reason, and the next dataset starts from the newest
    version. If a bound needs held-out rows and there are none, the candidate is rejected too.
    """

    max_drift: float | None = Field(
        default=None,
        gt=0,
        description="largest relative drift of an earlier dataset's scores since it was learned; "
        "default: the specification's bound (protection.max_drift), if any",
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
        default=False, description="hold each candidate that passes until a user approves it"
    )
    priority: Priority = Field(
        default="normal",
        description="priority of the model's attempts in the queue for warm ranks, and in the cluster's "
        "queue if it has one; running attempts are not preempted",
    )
    rollout: RolloutPolicy = Field(
        default=RolloutPolicy(), description="how a published version is rolled out"
    )
