"""Drift of live queries: sums of queries that replicas write, and the report that one of them makes of all."""

from datetime import datetime

from pydantic import Base64Bytes, Field

from cmcl.contract.modality import Frozen, Modality, ModelName

# Nothing of fewer queries leaves a replica: a sum of one query would be that query.
FEWEST_ROWS = 256
# In a report, by modality: five hours of a model that is queried all the time.
MOST_WINDOWS = 300
# Drift has ended after so many windows without it.
_CALM_WINDOWS = 3


class WrittenSum(Frozen):
    """A sum of queries of one modality, in the numbers of `workers.nullspace.query_drift`."""

    rows: int = Field(ge=FEWEST_ROWS)
    sum: Base64Bytes = Field(description="float64, little-endian, one number for each of a feature")


class QuerySums(Frozen):
    """`queries/<model>/<minute>-<replica>.json`: what one replica has answered with one version."""

    model: ModelName
    version: int = Field(ge=1)
    sums: dict[Modality, WrittenSum]


class DriftWindow(Frozen):
    """How far the queries of one minute, or more, were from what the version has learned."""

    at: datetime
    version: int = Field(ge=1)
    rows: int = Field(ge=FEWEST_ROWS, description="queries in the sum")
    level: float = Field(
        ge=0,
        description="distance of their mean from the nearest mixture of datasets, relative to the one that queries of "
        "these datasets exceed by chance once in 30 days; above 1 is drift",
    )
    nearest: dict[str, float] = Field(
        default={}, description="by dataset, its share of that mixture; the largest three"
    )


class ModalityDrift(Frozen):
    """Windows of one modality, oldest first. `mean`: projections of the queries of the newest one."""

    windows: tuple[DriftWindow, ...] = Field(min_length=1, max_length=MOST_WINDOWS)
    mean: tuple[float, ...]

    @property
    def is_drifting(self) -> bool:
        """Whether one of the last windows of the version that was queried last has drift."""
        version = self.windows[-1].version
        own = [window for window in self.windows if window.version == version]
        return any(window.level > 1 for window in own[-_CALM_WINDOWS:])


class DriftReport(Frozen):
    """`drift/<model>.json`: drift of the queries of a model, by modality."""

    model: ModelName
    modalities: dict[Modality, ModalityDrift]

    @property
    def drifting(self) -> list[str]:
        """Modalities whose queries drift, in lexical order."""
        return sorted(name for name, each in self.modalities.items() if each.is_drifting)
