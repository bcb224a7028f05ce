"""Result types of the control plane: models, versions, promotions, trials."""

from datetime import datetime
from typing import Any

from pydantic import Field

from cmcl.client.types import ApiModel
from cmcl.contract.rollout import RolloutRule
from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    VersionManifest,
    VersionReport,
)


class BranchOrigin(ApiModel):
    """The model and version that a branch started from."""

    model: str
    version: int


class Model(ApiModel):
    """A model: its full specification, and its newest and live versions."""

    name: str
    owner: str | None = None
    width: int = Field(description="width of the embeddings")
    modalities: dict[str, int] = Field(description="width of each modality's features")
    method: str
    conditioning: float
    protection: dict[str, Any]
    training: dict[str, Any]
    seed: int
    head_version: int | None = Field(description="newest version")
    live_version: int | None = Field(description="live version")
    live_generation: int
    branched_from: BranchOrigin | None = None
    created_at: datetime


class Policy(ApiModel):
    """Requirements for a candidate, and priority of the model. `revision` grows with each change."""

    max_drift: float | None = None
    min_backward_transfer: float | None = None
    min_gain: float | None = None
    manual_approval: bool = False
    priority: str = Field(default="normal", description="low, normal or high")
    rollout: dict[str, Any] = Field(default={}, description="how a new version is released")
    revision: int | None = None


class Live(ApiModel):
    """The live version, and the number of promotions so far."""

    version: int
    generation: int


class Promotion(ApiModel):
    """A change of the live version."""

    generation: int
    version: int
    previous: int | None
    kind: str = Field(description="published, promoted or rolled_back")
    reason: str
    actor: str
    created_at: datetime


class VersionSummary(ApiModel):
    """A published version, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str | None = Field(description="None for a version that a branch inherited")
    attempt: int
    dataset: str
    dataset_name: str
    copied_from: str | None = None
    created_at: datetime
    stored_at: datetime | None = Field(description="when its files were stored")
    retired_at: datetime | None = None


class Certificate(ApiModel):
    """Effect of a version on earlier datasets, by dataset."""

    drift: dict[str, Drift]
    quality: dict[str, Quality]
    protection: dict[str, Protection] = Field(description="protected parts, by modality")
    shrinkage: Shrinkage | None = None


class EvaluationRow(ApiModel):
    """Recall of one version on every dataset so far that has held-out rows."""

    version: int
    learned: str = Field(description="dataset of the version")
    recall: dict[str, Recall] = Field(description="recall by dataset")


class Version(VersionSummary):
    """A published version: certificate, evaluation matrix, capacity, lineage, manifest."""

    certificate: Certificate
    evaluation_matrix: list[EvaluationRow]
    capacity: dict[str, HeadCapacity] = Field(description="remaining capacity by modality")
    lineage: tuple[LearnedDataset, ...]
    manifest: VersionManifest

    @property
    def report(self) -> VersionReport:
        """Report of the training job."""
        return self.manifest.report


class Agreement(ApiModel):
    """Mean agreement of the candidate's scores with the live version's, for one pair."""

    queries: int
    cosine: float | None
    overlap: float | None = Field(description="overlap of the ten best results")


class TrialObservations(ApiModel):
    """Observations of a trial, summed over all replicas."""

    replicas: int
    answered: int
    shadowed: int
    failed: int
    requests: int
    error_share: float
    refused: dict[str, str] = Field(default={}, description="load errors by replica")
    pairs: dict[str, Agreement] = Field(default={})
    unreadable: dict[str, str] = Field(default={}, description="read errors by object")
    at: datetime | None = None


class Canary(ApiModel):
    """The version on trial: its shares, rule and observations."""

    version: int
    share: float
    shadow: float
    rule: RolloutRule
    revision: int
    reason: str
    actor: str
    began_at: datetime
    observed: TrialObservations
