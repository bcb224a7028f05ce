"""A version on trial beside the one that answers: who sees it, what the replicas tell, what ends it.

The control plane writes the trial into `live.json`; each replica writes what it sees to
`models/<model>/observations/<revision>/`; the control plane adds it up and applies the rule.
"""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cmcl.contract.modality import Frozen


class RolloutRule(Frozen):
    """What ends a trial. A bound that is not set is not judged.

    A bound that is broken takes the candidate back, once it was judged by `min_requests` or more.
    """

    min_requests: int = Field(
        default=100, ge=1, le=10**9, description="answered or shadowed, before anything is judged"
    )
    max_error_share: float = Field(
        default=0.01, ge=0, le=1, description="largest share of the candidate's own failed requests"
    )
    min_cosine: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="smallest mean cosine of a pair's scores by the candidate and by the live version",
    )
    min_overlap: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="smallest mean share of a pair's ten best that both versions have in common",
    )
    promote_after: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="requests after which a candidate that broke no bound becomes the live version; "
        "by default somebody promotes it by hand",
    )


class TrialTerms(Frozen):
    """Who sees a version on trial, and what ends the trial."""

    share: float = Field(
        default=0, ge=0, le=1, description="canary: of the callers, by hash, who get its answers"
    )
    shadow: float = Field(
        default=0, ge=0, le=1, description="of the live version's requests, scored by it as well"
    )
    rule: RolloutRule = RolloutRule()

    def check_can_be_judged(self) -> None:
        """A trial that nobody sees, or a bound that nothing is measured for, would never end.

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


class CanaryPlan(TrialTerms):
    """The terms of a trial that somebody begins."""

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        self.check_can_be_judged()
        return self


class Canary(BaseModel):
    """The trial as replicas see it. Unknown fields are ignored, as in `LivePointer`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(ge=1)
    revision: int = Field(
        default=0,
        ge=0,
        description="of the pointer that began the trial; observations lie under it",
    )
    share: float = Field(
        default=0, ge=0, le=1, description="canary: of the callers, by hash, who get its answers"
    )
    shadow: float = Field(
        default=0, ge=0, le=1, description="of the live version's requests, scored by it as well"
    )


class PairAgreement(Frozen):
    """How the candidate's scores across one pair of modalities compare with the live version's.

    Sums over queries, so that the figures of several replicas can be added.
    """

    queries: int = Field(default=0, ge=0)
    cosine_sum: float = Field(default=0, description="cosines of the two score vectors of a query")
    overlap_sum: float = Field(default=0, ge=0, description="shares of the ten best in common")

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
    """What one replica has seen of one trial since it began; written anew from time to time.

    `pairs` is keyed by `ModalityPair.key`. A replica that starts again has a new name.
    """

    replica: str
    revision: int = Field(ge=0, description="of the pointer that began the trial")
    version: int = Field(ge=1, description="the candidate")
    answered: int = Field(default=0, ge=0, description="requests that the candidate answered")
    failed: int = Field(default=0, ge=0, description="requests that failed because of it")
    shadowed: int = Field(default=0, ge=0, description="requests of the live version scored by it")
    refused: str | None = Field(default=None, description="why the replica could not load it")
    pairs: dict[str, PairAgreement] = Field(default={})
    at: datetime


class Observed(Frozen):
    """What all replicas together have seen of a trial: the sum of their newest observations."""

    replicas: int = Field(default=0, ge=0, description="that have told of it since it began")
    answered: int = Field(default=0, ge=0, description="requests that the candidate answered")
    failed: int = Field(default=0, ge=0, description="requests that failed because of it")
    shadowed: int = Field(default=0, ge=0, description="requests of the live version scored by it")
    refused: dict[str, str] = Field(
        default={}, description="by replica: why it could not load the candidate"
    )
    pairs: dict[str, PairAgreement] = Field(default={})
    unreadable: dict[str, str] = Field(
        default={}, description="by object: why what it says was left out"
    )
    at: datetime | None = Field(default=None, description="of the newest observation")

    @property
    def requests(self) -> int:
        """By how many the candidate was judged."""
        return self.answered + self.failed + self.shadowed

    @property
    def error_share(self) -> float:
        """Of all requests: what fails in shadow would fail as an answer as well."""
        return self.failed / max(1, self.requests)
