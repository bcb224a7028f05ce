"""A model's policy: the priority of its attempts, the conditions for publishing a candidate, and the
rollout of new versions: at once, or as a canary, with what replicas observe of it.

The control plane writes the canary to `live.json`; each replica writes observations to
`models/<model>/observations/<revision>/`; the control plane sums them and applies the rule.
"""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cmcl.contract.methods import Priority
from cmcl.contract.modality import Frozen


class RolloutRule(Frozen):
    """What ends a canary. A bound that is not set is not checked.

    A violated bound aborts the canary, once it has `min_requests` or more.
    """

    min_requests: int = Field(
        default=100,
        ge=1,
        le=10**9,
        description="requests, answered or shadowed, before bounds are checked",
    )
    max_error_share: float = Field(
        default=0.01, ge=0, le=1, description="largest share of failed requests of the canary"
    )
    min_cosine: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="smallest mean cosine between the scores of the canary and of the live version, for each "
        "pair",
    )
    min_overlap: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="smallest mean share of the top ten that both versions have in common, for each pair",
    )
    promote_after: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="requests after which a canary that violated no bound becomes the live version; "
        "default: it is promoted manually",
    )


class CanaryTerms(Frozen):
    """Which traffic a canary gets, and what ends it."""

    share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of callers, chosen by hash, that the canary serves",
    )
    shadow: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of the live version's requests that the canary scores too",
    )
    rule: RolloutRule = RolloutRule()

    def check_can_be_judged(self) -> None:
        """Check that the canary gets traffic and its bounds can be measured, or it would never end.

        Raises ValueError.
        """
        if self.share == self.shadow == 0:
            raise ValueError("share and shadow are both 0; permitted: one of them above 0, up to 1")
        for bound in ("min_cosine", "min_overlap"):
            value = getattr(self.rule, bound)
            if value is not None and self.shadow == 0:
                raise ValueError(
                    f"rule.{bound} is {value:g} and shadow is 0, but agreement is measured in shadow "
                    "only; permitted: shadow above 0, up to 1"
                )


class CanaryPlan(CanaryTerms):
    """The terms of a canary started by a user."""

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        self.check_can_be_judged()
        return self


class Canary(BaseModel):
    """The canary in `LivePointer`. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(ge=1)
    revision: int = Field(
        default=0,
        ge=0,
        description="revision of the pointer that started the canary; observations are stored under it",
    )
    share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of callers, chosen by hash, that the canary serves",
    )
    shadow: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of the live version's requests that the canary scores too",
    )


class PairAgreement(Frozen):
    """Agreement between the scores of the canary and the live version for one pair of modalities.

    Sums over queries, so that values of several replicas can be added.
    """

    queries: int = Field(default=0, ge=0)
    cosine_sum: float = Field(
        default=0, description="sum of the cosines of each query's two score vectors"
    )
    overlap_sum: float = Field(
        default=0, ge=0, description="sum of the shares of the top ten in common"
    )

    def __add__(self, other: "PairAgreement") -> "PairAgreement":
        return PairAgreement(
            queries=self.queries + other.queries,
            cosine_sum=self.cosine_sum + other.cosine_sum,
            overlap_sum=self.overlap_sum + other.overlap_sum,
        )

    @property
    def mean_cosine(self) -> float | None:
        """None before the first query."""
        return self.cosine_sum / self.queries if self.queries else None

    @property
    def mean_overlap(self) -> float | None:
        """None before the first query."""
        return self.overlap_sum / self.queries if self.queries else None


class Observation(Frozen):
    """What one replica has observed of a canary since it started; rewritten periodically.

    `pairs` is keyed by `ModalityPair.key`. A restarted replica has a new name.
    """

    replica: str
    revision: int = Field(ge=0, description="revision of the pointer that started the canary")
    version: int = Field(ge=1, description="version of the canary")
    answered: int = Field(default=0, ge=0, description="requests that the canary answered")
    failed: int = Field(default=0, ge=0, description="requests that failed because of it")
    shadowed: int = Field(
        default=0, ge=0, description="requests of the live version that the canary scored too"
    )
    refused: str | None = Field(default=None, description="why the replica could not load it")
    pairs: dict[str, PairAgreement] = Field(default={})
    at: datetime


class Observed(Frozen):
    """The observations of all replicas: the sum of their newest ones."""

    replicas: int = Field(
        default=0, ge=0, description="replicas that have reported since it started"
    )
    answered: int = Field(default=0, ge=0, description="requests that the canary answered")
    failed: int = Field(default=0, ge=0, description="requests that failed because of it")
    shadowed: int = Field(
        default=0, ge=0, description="requests of the live version that the canary scored too"
    )
    refused: dict[str, str] = Field(
        default={}, description="by replica: why it could not load the canary"
    )
    pairs: dict[str, PairAgreement] = Field(default={})
    unreadable: dict[str, str] = Field(
        default={}, description="by object: why it could not be read"
    )
    at: datetime | None = Field(default=None, description="time of the newest observation")

    @property
    def requests(self) -> int:
        """Number of observed requests."""
        return self.answered + self.failed + self.shadowed

    @property
    def error_share(self) -> float:
        """Share of failed requests; failures in shadow count, because they would fail for callers too."""
        return self.failed / max(1, self.requests)


class RolloutPolicy(CanaryTerms):
    """How a new version is rolled out: live at once, or first as a canary."""

    publish_as: Literal["live", "canary"] = Field(
        default="live",
        description="live: a new version becomes live at once and ends a running canary; "
        "canary: it starts as a canary with this share, shadow and rule, and replaces a running one",
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        """Share and shadow may both be 0 if there are no canaries."""
        if self.publish_as == "canary":
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
    rollout: RolloutPolicy = Field(
        default=RolloutPolicy(), description="how a published version is rolled out"
    )
