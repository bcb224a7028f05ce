"""What the API answers. What it is asked stands with the contract and with `control.intake`."""

from datetime import datetime
from typing import Annotated, Generic, Literal, Self, TypeVar

from fastapi import Body
from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.job import Progress
from cmcl.contract.modality import Frozen, ModalityPair, ModelName
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import (
    Drift,
    HeadCapacity,
    LearnedDataset,
    Protection,
    Quality,
    Recall,
    Shrinkage,
    VersionManifest,
)
from service.api.dependencies import LARGEST_NUMBER
from service.database.rows import (
    DatasetRecord,
    JobRecord,
    ModelRecord,
    PromotionRecord,
    VersionOutline,
    VersionRecord,
)
from service.datasets.intake import NewDataset
from service.states import FailureReason, JobState

Item = TypeVar("Item", bound=BaseModel)


class Page(BaseModel, Generic[Item]):
    """Some items, and where to go on; no cursor on the last page."""

    items: list[Item]
    next_cursor: str | None = None


class NewModel(ModelSpec):
    """A model as it is posted: its name beside its specification."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "street-scenes", "modalities": {"image": 1280, "text": 384}, "width": 256}
            ]
        }
    )

    name: ModelName

    @property
    def spec(self) -> ModelSpec:
        """The specification alone."""
        return ModelSpec.model_validate(self.model_dump(exclude={"name"}))


class BranchOrigin(BaseModel):
    """Which version of which model a branch starts from."""

    model: str
    version: int


class NewBranch(Frozen):
    """A branch as it is posted."""

    name: ModelName
    version: int = Field(ge=1, le=LARGEST_NUMBER, description="to start from")


class Reason(Frozen):
    """Why, for the history."""

    reason: str = Field(default="", max_length=500, pattern=r"^[^\x00]*$")


# A request without a body gives no reason.
ReasonBody = Annotated[Reason, Body(default_factory=Reason)]


class ModelView(NewModel):
    """A model: what was posted, and where it stands."""

    owner: str
    head_version: int | None = Field(description="newest version")
    live_version: int | None = Field(description="version that answers")
    live_generation: int = Field(description="grows with each promotion; 0 before the first")
    branched_from: BranchOrigin | None
    created_at: datetime

    @classmethod
    def of(cls, model: ModelRecord) -> Self:
        """The view of a record."""
        origin = model.branched_from
        return cls(
            name=model.name,
            owner=model.owner,
            branched_from=BranchOrigin(**vars(origin)) if origin else None,
            **{field: getattr(model.spec, field) for field in ModelSpec.model_fields},
            head_version=model.head or None,
            live_version=model.live_version,
            live_generation=model.live_generation,
            created_at=model.created_at,
        )


class DatasetSummary(BaseModel):
    """A dataset without its shards."""

    id: str
    model: str
    name: str
    pair: ModalityPair
    job: str | None = Field(description="none while the dataset is open")
    rows: int | None = Field(description="rows to train on; known once it was verified")
    quarantine_reason: str | None = Field(description="why its rows cannot be used")
    created_at: datetime
    sealed_at: datetime | None = Field(description="none while shards can be added")

    @classmethod
    def of(cls, dataset: DatasetRecord, job: str | None) -> Self:
        """The view of a record."""
        return cls(
            id=dataset.id,
            model=dataset.model,
            name=dataset.name,
            pair=dataset.pair,
            job=job,
            rows=dataset.manifest.rows if dataset.manifest else None,
            quarantine_reason=dataset.quarantine_reason,
            created_at=dataset.created_at,
            sealed_at=dataset.sealed_at,
        )


class DatasetView(DatasetSummary):
    """A dataset as it was posted, and as it was verified."""

    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...]
    evaluation_share: float | None
    manifest: DatasetManifest | None = Field(description="with digests and rows of each shard")

    @classmethod
    def of(cls, dataset: DatasetRecord, job: str | None) -> Self:
        """The view of a record."""
        request = NewDataset.model_validate(dataset.request)
        return cls(
            **DatasetSummary.of(dataset, job).model_dump(),
            shards=request.shards,
            evaluation_shards=request.evaluation_shards,
            evaluation_share=request.evaluation_share,
            manifest=dataset.manifest,
        )


class ApprovalView(BaseModel):
    """What a person said about a candidate."""

    model_config = ConfigDict(from_attributes=True)

    decision: Literal["approved", "rejected"]
    actor: str
    reason: str
    at: datetime


class JobView(BaseModel):
    """A job: where it stands, and why."""

    id: str
    model: str
    dataset: str
    state: JobState
    reason: FailureReason | None = Field(description="why it was rejected or has failed")
    message: str | None = Field(description="the reason in words, or what it waits for")
    attempt: int = Field(description="number of the newest attempt; 0 before the first")
    progress: Progress | None
    approval: ApprovalView | None = Field(description="what a person said about its candidate")
    parent_version: int | None = Field(description="version that it starts from")
    version: int | None = Field(description="version that it makes")
    cancel_requested: bool
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: JobRecord) -> Self:
        """The view of a record."""
        values = {field: getattr(job, field) for field in cls.model_fields}
        return cls.model_validate(values)


class AcceptedDataset(BaseModel):
    """A dataset and the job that learns it; an open one has none yet."""

    dataset: DatasetSummary
    job: JobView | None


class VersionSummary(BaseModel):
    """A published version, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str | None = Field(description="none for one that a branch has from its source")
    attempt: int
    dataset: str
    dataset_name: str
    copied_from: str | None = Field(description="model whose version of this number it is")
    created_at: datetime
    stored_at: datetime | None = Field(description="when its files were in place")
    retired_at: datetime | None = Field(description="when it was taken out of use")

    @classmethod
    def of(cls, version: VersionOutline) -> Self:
        """The view of a record."""
        return cls(
            model=version.model,
            version=version.number,
            parent=version.parent,
            job=version.job,
            attempt=version.attempt,
            dataset=version.dataset,
            dataset_name=version.dataset_name,
            copied_from=version.copied_from,
            created_at=version.created_at,
            stored_at=version.stored_at,
            retired_at=version.retired_at,
        )


class Certificate(BaseModel):
    """What this version did to the datasets before it, by dataset."""

    drift: dict[str, Drift]
    quality: dict[str, Quality]
    protection: dict[str, Protection] = Field(description="by modality: what was closed to it")
    shrinkage: Shrinkage | None


class EvaluationRow(BaseModel):
    """One version: its recall on every dataset up to it that has held-out rows."""

    version: int
    learned: str = Field(description="dataset that it learned")
    recall: dict[str, Recall] = Field(description="by dataset")


class VersionView(VersionSummary):
    """A published version with everything that is known about it."""

    certificate: Certificate
    evaluation_matrix: list[EvaluationRow] = Field(
        description="versions up to this one: down a column, what became of a dataset"
    )
    capacity: dict[str, HeadCapacity] = Field(description="by modality: what is left to learn with")
    lineage: tuple[LearnedDataset, ...] = Field(
        description="what it has learned, with the digests of all shards"
    )
    manifest: VersionManifest

    @classmethod
    def whole(
        cls, version: VersionRecord, evaluations: list[tuple[int, str, dict[str, Recall]]]
    ) -> Self:
        """The view of a record, and of the evaluations of the versions up to it."""
        report = version.manifest.report
        return cls(
            **VersionSummary.of(version).model_dump(),
            certificate=Certificate.model_validate(report, from_attributes=True),
            evaluation_matrix=[
                EvaluationRow(version=number, learned=learned, recall=recall)
                for number, learned, recall in evaluations
            ],
            capacity=report.capacity,
            lineage=version.manifest.learned,
            manifest=version.manifest,
        )


class LiveChoice(Reason):
    """Which version shall answer, and why."""

    version: int = Field(ge=1, le=LARGEST_NUMBER)


class LiveView(BaseModel):
    """Which version answers, and since how many promotions."""

    version: int
    generation: int


class PromotionView(BaseModel):
    """One change of the version that answers."""

    generation: int
    version: int
    previous: int | None
    kind: Literal["published", "promoted", "rolled_back"]
    reason: str
    actor: str = Field(description="name of the key, or `reconciler` for a new version")
    created_at: datetime

    @classmethod
    def of(cls, promotion: PromotionRecord) -> Self:
        """The view of a record."""
        return cls(**{field: getattr(promotion, field) for field in cls.model_fields})


class Health(BaseModel):
    """Whether this process can do its work; `checks` says what each part answered."""

    status: str
    checks: dict[str, str] = {}
