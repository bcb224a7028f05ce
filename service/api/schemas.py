"""What the API answers. What it is asked stands with the contract and with `control.intake`."""

from datetime import datetime
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, Field

from service.api.dependencies import LARGEST_NUMBER
from service.control.intake import NewDataset
from service.database.rows import (
    DatasetRecord,
    JobRecord,
    ModelRecord,
    PromotionRecord,
    VersionRecord,
)
from service.states import FailureReason, JobState
from workers.contract.dataset import DatasetManifest, ShardRef
from workers.contract.job import Progress
from workers.contract.modality import Frozen, ModalityPair, ModelName
from workers.contract.model import ModelSpec
from workers.contract.version import VersionManifest

Item = TypeVar("Item", bound=BaseModel)


class Page(BaseModel, Generic[Item]):
    """Some items, and where to go on; no cursor on the last page."""

    items: list[Item]
    next_cursor: str | None = None


class NewModel(ModelSpec):
    """A model as it is posted: its name beside its specification."""

    name: ModelName

    @property
    def spec(self) -> ModelSpec:
        """The specification alone."""
        return ModelSpec.model_validate(self.model_dump(exclude={"name"}))


class ModelView(NewModel):
    """A model: what was posted, and where it stands."""

    head_version: int | None = Field(description="newest version")
    live_version: int | None = Field(description="version that answers")
    live_generation: int = Field(description="grows with each promotion; 0 before the first")
    created_at: datetime

    @classmethod
    def of(cls, model: ModelRecord) -> Self:
        """The view of a record."""
        return cls(
            name=model.name,
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
    job: str
    rows: int | None = Field(description="rows to train on; known once it was verified")
    quarantine_reason: str | None = Field(description="why its rows cannot be used")
    created_at: datetime

    @classmethod
    def of(cls, dataset: DatasetRecord, job: str) -> Self:
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
        )


class DatasetView(DatasetSummary):
    """A dataset as it was posted, and as it was verified."""

    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...]
    manifest: DatasetManifest | None = Field(description="with digests and rows of each shard")

    @classmethod
    def of(cls, dataset: DatasetRecord, job: str) -> Self:
        """The view of a record."""
        request = NewDataset.model_validate(dataset.request)
        return cls(
            **DatasetSummary.of(dataset, job).model_dump(),
            shards=request.shards,
            evaluation_shards=request.evaluation_shards,
            manifest=dataset.manifest,
        )


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
        return cls(**{field: getattr(job, field) for field in cls.model_fields})


class AcceptedDataset(BaseModel):
    """A dataset and the job that learns it."""

    dataset: DatasetSummary
    job: JobView


class VersionSummary(BaseModel):
    """A published version, without its manifest."""

    model: str
    version: int
    parent: int | None
    job: str
    attempt: int
    dataset: str
    dataset_name: str
    created_at: datetime
    stored_at: datetime | None = Field(description="when its files were in place")

    @classmethod
    def of(cls, version: VersionRecord) -> Self:
        """The view of a record."""
        return cls(
            model=version.model,
            version=version.number,
            parent=version.parent,
            job=version.job,
            attempt=version.attempt,
            dataset=version.manifest.dataset,
            dataset_name=version.manifest.learned[-1].name,
            created_at=version.created_at,
            stored_at=version.stored_at,
        )


class VersionView(VersionSummary):
    """A published version with everything that is known about it."""

    manifest: VersionManifest

    @classmethod
    def of(cls, version: VersionRecord) -> Self:
        """The view of a record."""
        summary = VersionSummary.of(version).model_dump()
        return cls(**summary, manifest=version.manifest)


class LiveChoice(Frozen):
    """Which version shall answer."""

    version: int = Field(ge=1, le=LARGEST_NUMBER)
    reason: str = Field(
        default="",
        max_length=500,
        pattern=r"^[^\x00]*$",
        description="for the history of promotions",
    )


class LiveView(BaseModel):
    """Which version answers, and since how many promotions."""

    version: int
    generation: int


class PromotionView(BaseModel):
    """One change of the version that answers."""

    generation: int
    version: int
    previous: int | None
    reason: str
    actor: str = Field(description="`user`, or `reconciler` for a new version")
    created_at: datetime

    @classmethod
    def of(cls, promotion: PromotionRecord) -> Self:
        """The view of a record."""
        return cls(**{field: getattr(promotion, field) for field in cls.model_fields})


class Health(BaseModel):
    """Whether this process can do its work; `checks` says what each part answered."""

    status: str
    checks: dict[str, str] = {}
