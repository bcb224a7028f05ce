"""A model's gate: the conditions for publishing a candidate, and the priority of the model's jobs."""

from pydantic import Field

from cmcl.contract.methods import Priority
from cmcl.contract.modality import Frozen


class Gate(Frozen):
    """Conditions that a candidate's report must meet, and the `priority` of the model's jobs.

    A bound that is not set is not checked. The values at the time of the judgement count. A candidate
    that violates a bound is rejected with the reason, and the next dataset starts from the newest
    version; after a change of the gate, its job can be retried. If a bound needs held-out rows and there are
    none, the candidate is rejected too.
    """

    max_drift: float | None = Field(
        default=None,
        gt=0,
        description="largest relative drift of an earlier dataset's scores since it was learned; "
        "default: the specification's bound (max_drift), if any",
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
        description="priority of the model's jobs among those of its owner: high starts as if it had waited for an hour "
        "longer, low for an hour less. Other owners are passed only where the operator grants it. Running attempts are "
        "not preempted",
    )

    @property
    def needs_every_dataset(self) -> bool:
        """Whether a bound is about all earlier datasets."""
        return self.max_drift is not None or self.min_backward_transfer is not None
