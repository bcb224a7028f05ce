"""Answers of the control plane about models, their versions, and the version on trial."""

from datetime import datetime
from typing import Any

from pydantic import Field

from cmcl.client.answers import Answer
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


class VersionSummary(Answer):
    """A published version, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str | None = Field(description="none for one that a branch has from its source")
    attempt: int
    dataset: str
    dataset_name: str
    copied_from: str | None = None
    created_at: datetime
    stored_at: datetime | None = Field(description="when its files were in place")
    retired_at: datetime | None = None


class Certificate(Answer):
    """What the version did to the datasets before it, by dataset."""

    drift: dict[str, Drift]
    quality: dict[str, Quality]
    protection: dict[str, Protection] = Field(description="by modality: what was closed to it")
    shrinkage: Shrinkage | None = None


class EvaluationRow(Answer):
    """One version: its recall on every dataset up to it that has held-out rows."""

    version: int
    learned: str = Field(description="dataset that it learned")
    recall: dict[str, Recall] = Field(description="by dataset")


class Version(VersionSummary):
    """A published version: certificate, evaluation matrix, capacity, lineage, manifest."""

    certificate: Certificate
    evaluation_matrix: list[EvaluationRow]
    capacity: dict[str, HeadCapacity] = Field(description="by modality: what is left to learn with")
    lineage: tuple[LearnedDataset, ...]
    manifest: VersionManifest

    @property
    def report(self) -> VersionReport:
        """What its training job found out."""
        return self.manifest.report


class Agreement(Answer):
    """How the candidate's scores across one pair compare with the live version's: means."""

    queries: int
    cosine: float | None
    overlap: float | None = Field(description="share of the ten best in common")


class Observed(Answer):
    """Observations of the trial by all replicas together."""

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


class Canary(Answer):
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
