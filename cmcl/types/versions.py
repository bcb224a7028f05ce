"""Versions of a model with everything that is known about them."""

from datetime import datetime

from pydantic import Field

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
from cmcl.types.answer import Answer


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
