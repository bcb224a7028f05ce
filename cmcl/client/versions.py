"""Result types of the control plane: versions, their measurements, candidates."""

from datetime import datetime

from pydantic import Field

from cmcl.client.types import ApiModel
from cmcl.contract.job import JobKind
from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    MeasuredDataset,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    Solution,
    VersionManifest,
    VersionReport,
)


class VersionSummary(ApiModel):
    """A published version, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str | None = Field(description="None for a version that a branch inherited")
    attempt: int
    kind: JobKind = "learn"
    dataset: str | None = Field(description="None: it unlearned one, or merged")
    dataset_name: str
    copied_from: str | None = None
    created_at: datetime
    stored_at: datetime | None = Field(description="when its manifest was stored")
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
    learned: str | None = Field(description="dataset of the version; None: it learned none")
    recall: dict[str, Recall] = Field(description="recall by dataset")


class Version(VersionSummary):
    """A published version: certificate, evaluation matrix, capacity, lineage, manifest."""

    certificate: Certificate
    evaluation_matrix: list[EvaluationRow]
    evaluation_only: tuple[MeasuredDataset, ...] = Field(
        default=(), description="recall on datasets that are measured and never learned"
    )
    capacity: dict[str, HeadCapacity] = Field(description="remaining capacity by modality")
    lineage: tuple[LearnedDataset, ...]
    manifest: VersionManifest

    @property
    def report(self) -> VersionReport:
        """Report of the training job."""
        return self.manifest.report

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        # Pictures are no part of the start-up of other programs.
        from cmcl.client.notebook import version_html

        return version_html(self)


class DatasetFigures(ApiModel):
    """Measurements of a version by id of the dataset, to six significant digits."""

    recall: dict[str, float] = Field(default={}, description="R@1 of each dataset")
    recall_at_10: dict[str, float] = Field(default={}, description="R@10 of each dataset")
    drift: dict[str, float] = Field(
        default={}, description="drift of each earlier dataset since it was learned"
    )
    quality: dict[str, float] = Field(
        default={}, description="loss of each earlier dataset; -1 as when it was learned"
    )
    best: dict[str, float] = Field(
        default={}, description="lowest loss that heads of this width reach on the dataset alone"
    )
    evaluation_only: dict[str, float] = Field(
        default={}, description="R@1 of datasets that are measured and never learned"
    )


class VersionFigures(ApiModel):
    """Measurements of a version. `by_dataset` is None if it was not asked for."""

    version: int
    parent: int | None
    job: str | None = None
    kind: JobKind = "learn"
    dataset: str | None
    dataset_name: str
    pair: ModalityPair
    created_at: datetime
    stored_at: datetime | None = None
    retired_at: datetime | None = None
    max_drift: float | None = Field(default=None, description="None: no earlier dataset")
    mean_recall: float | None = Field(default=None, description="mean R@1")
    free_share: dict[str, float] = Field(default={}, description="free share by modality")
    by_dataset: DatasetFigures | None = None


class FreeShare(ApiModel):
    """Share of a head's entries that the next dataset may change, after one version."""

    version: int
    free_share: float
    learned: bool = Field(description="whether the version's dataset had the modality")


class ModalityCapacity(ApiModel):
    """The room that one head has left, and how it filled."""

    now: HeadCapacity
    datasets_left: int | None = Field(
        default=None, description="forecast of how many more datasets fit; None: unknown"
    )
    taken_per_dataset: float | None = Field(
        default=None, description="part of what is free that each dataset takes; None: unknown"
    )
    history: list[FreeShare] = Field(default=[], description="oldest first")


class ModelCapacity(ApiModel):
    """How full the heads of a model are."""

    model: str
    version: int | None = Field(description="newest version")
    full_below: float = Field(description="below this free share a head counts as full")
    modalities: dict[str, ModalityCapacity]
    remark: str | None = Field(default=None, description="why there is none, or what it is worth")


class Bound(ApiModel):
    """A bound that the gate can set for candidates, and how a candidate compares with it."""

    name: str = Field(description="max_drift, min_backward_transfer or min_gain")
    permitted: float | None = Field(default=None, description="None: not set")
    found: float | None = Field(
        default=None, description="None: not measured, or there is no earlier dataset"
    )
    met: bool | None = Field(default=None, description="None: not set")
    source: str = Field(description="gate or specification")
    message: str | None = Field(default=None, description="why it is not met")


class CandidateDataset(ApiModel):
    """A dataset in the version that learned it, in the candidate's parent, and in the candidate."""

    dataset: str
    name: str
    pair: ModalityPair
    rows: int
    version: int = Field(description="version that learned it")
    is_new: bool = Field(description="whether the candidate learned it")
    recall_learned: Recall | None = None
    recall_before: Recall | None = Field(default=None, description="in the parent")
    recall_after: Recall | None = Field(default=None, description="in the candidate")
    drift_before: float | None = Field(
        default=None, description="drift since it was learned, in the parent"
    )
    drift_after: float | None = Field(default=None, description="the same in the candidate")
    drift_against_parent: float | None = Field(default=None, description="by the candidate alone")
    quality_before: Quality | None = None
    quality_after: Quality | None = None
    attainable: float | None = Field(
        default=None, description="sum of its squared canonical correlations that heads can hold"
    )
    not_evaluated: str | None = Field(
        default=None, description="why its held-out rows were not measured"
    )


class CapacityChange(ApiModel):
    """Capacity of a head in the candidate's parent and in the candidate."""

    before: HeadCapacity | None = None
    after: HeadCapacity


class Candidate(ApiModel):
    """A candidate that waits for a decision, beside its parent."""

    job: str
    model: str
    attempt: int
    version: int = Field(description="number of the version that it would be")
    parent: int | None
    kind: JobKind = "learn"
    dataset: str | None
    dataset_name: str
    pair: ModalityPair
    created_at: datetime
    manual_approval: bool
    bounds: list[Bound]
    datasets: list[CandidateDataset] = Field(description="its own dataset is the last one")
    capacity: dict[str, CapacityChange]
    protection: dict[str, Protection] = Field(default={})
    shrinkage: Shrinkage | None = None
    solution: Solution | None = Field(default=None, description="None: the policy is not improve")
    final_loss: float
    updates: int
    ranks: int
    temperature: float | None = None
    seconds: dict[str, float] = Field(default={}, description="seconds of each part of the job")

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        # Pictures are no part of the start-up of other programs.
        from cmcl.client.notebook import candidate_html

        return candidate_html(self)
