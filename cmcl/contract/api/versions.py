"""Versions of a model, their measurements over time, and promotions."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from cmcl.contract.api.jobs import Approval
from cmcl.contract.job import JobKind
from cmcl.contract.modality import Modality, ModalityPair
from cmcl.contract.responses import ApiModel
from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    MeasuredDataset,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    VersionManifest,
    VersionReport,
)


class DatasetFigures(ApiModel):
    """Measurements of a version by id of the dataset. Datasets that were not measured are missing."""

    recall: dict[str, float] = Field(
        description="R@1 on held-out rows: share of queries whose partner is the best result"
    )
    recall_at_10: dict[str, float] = Field(description="the same among the ten best results")
    drift: dict[str, float] = Field(
        description="of earlier datasets: root mean square change of their scores since they were learned, relative to "
        "their size"
    )
    quality: dict[str, float] = Field(
        description="of earlier datasets: their spectral contrastive loss, scaled so that the version that learned them "
        "has -1; lower is better"
    )
    best: dict[str, float] = Field(
        description="of earlier datasets: the lowest such loss that any two heads of this width reach on them alone"
    )
    evaluation_only: dict[str, float] = Field(
        description="R@1 of datasets that are measured and never learned"
    )


class VersionSummary(ApiModel):
    """A published version with its measurements, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str | None = Field(description="null for a version that a branch has from its source")
    attempt: int
    kind: JobKind
    dataset: str | None = Field(description="that it learned; null: it unlearned one, or merged")
    dataset_name: str = Field(
        description="also of the dataset that it unlearned; of a merge, the version as `model@version`"
    )
    copied_from: str | None = Field(
        description="model whose job made it, if a branch has it from there"
    )
    created_at: datetime
    stored_at: datetime | None = Field(description="when its manifest was stored")
    retired_at: datetime | None = Field(description="when it was retired")
    pair: ModalityPair = Field(description="of a merge, that of the last dataset")
    max_drift: float | None = Field(
        description="largest drift of an earlier dataset since it was learned; null: there is none"
    )
    mean_recall: float | None = Field(
        description="mean R@1 over the datasets with held-out rows; null: there are none"
    )
    free_share: dict[Modality, float] = Field(
        description="by modality learned so far: share of its head's entries that the next dataset may change; empty if "
        "heads were solved from moments, which closes no entry"
    )
    by_dataset: DatasetFigures | None = Field(
        default=None,
        description="by dataset, to six significant digits; null if not asked for: only lists have it",
    )

    @property
    def title(self) -> str:
        """What it learned or unlearned, in rows of figures."""
        return f"row of {self.dataset_name}" if self.kind == "erase" else self.dataset_name


class Certificate(ApiModel):
    """The effect of this version on earlier datasets, by dataset."""

    drift: dict[str, Drift]
    quality: dict[str, Quality]
    protection: dict[str, Protection] = Field(
        description="by modality: what was protected from change"
    )
    shrinkage: Shrinkage | None


class EvaluationRow(ApiModel):
    """Recall of one version on every dataset up to it that has held-out rows."""

    version: int
    learned: str | None = Field(description="dataset that it learned; null: it unlearned or merged")
    recall: dict[str, Recall] = Field(description="by dataset")


class Version(VersionSummary):
    """A published version with its manifest and its measurements."""

    certificate: Certificate
    evaluation_matrix: list[EvaluationRow] = Field(
        description="one row per version up to this one; a column shows one dataset over time. Empty if not asked for"
    )
    evaluation_only: tuple[MeasuredDataset, ...] = Field(
        description="recall on datasets that are measured and never learned"
    )
    capacity: dict[str, HeadCapacity] = Field(description="by modality: capacity that is left")
    approval: Approval | None = Field(
        description="a user's decision to publish it; null: the gate asked for none"
    )
    lineage: tuple[LearnedDataset, ...] = Field(
        description="datasets that it has learned, with the digests of all shards"
    )
    manifest: VersionManifest

    @property
    def report(self) -> VersionReport:
        """Report of the training job."""
        return self.manifest.report


class FreeShare(ApiModel):
    """Entries of a head that the next dataset may change, after one version."""

    version: int
    free_share: float = Field(description="0 to 1")
    learned: bool = Field(description="whether the version's dataset had the modality")


class ModalityCapacity(ApiModel):
    """The room that one head has left, and how it filled."""

    now: HeadCapacity
    datasets_left: int | None = Field(
        description="how many more datasets of the modality leave the free share at `full_below` or above, if each takes "
        "what the latest four took on average: an order of magnitude. null: too few datasets, or the share does not fall"
    )
    taken_per_dataset: float | None = Field(
        description="part of what is free that each dataset takes, 0 to 1: after k more, free_share * (1 - this)^k is "
        "free. null as above"
    )
    history: list[FreeShare] = Field(description="oldest first")


class ModelCapacity(ApiModel):
    """How full the heads of a model are."""

    model: str
    version: int | None = Field(
        description="newest version, which `now` is of; null before the first"
    )
    full_below: float = Field(description="below this free share a head counts as full")
    modalities: dict[Modality, ModalityCapacity] = Field(description="those learned so far")
    remark: str | None = Field(
        description="why there is no capacity to measure, or what it is worth; null: the method closes entries"
    )


class Live(ApiModel):
    """The live version and its generation."""

    version: int
    generation: int


class Promotion(ApiModel):
    """A promotion: a change of the live version."""

    generation: int
    version: int
    previous: int | None
    kind: Literal["published", "promoted", "rolled_back"]
    returns_to: int | None = Field(
        description="generation that a rollback from this one returns to; null: there is none"
    )
    reason: str
    actor: str = Field(description="name of the key, or `reconciler` for a new version")
    created_at: datetime
