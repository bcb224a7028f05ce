"""Datasets as they were posted and as they were verified."""

from datetime import datetime

from pydantic import Field

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.types.answer import Answer
from cmcl.types.jobs import Job


class DatasetSummary(Answer):
    """A dataset without its shards."""

    id: str
    model: str
    name: str
    pair: ModalityPair
    job: str | None = Field(default=None, description="none while the dataset is open")
    rows: int | None = Field(default=None, description="known once it was verified")
    quarantine_reason: str | None = None
    created_at: datetime
    sealed_at: datetime | None = Field(default=None, description="none while it is open")


class Dataset(DatasetSummary):
    """A dataset with its shards."""

    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...] = ()
    evaluation_share: float | None = None
    manifest: DatasetManifest | None = None


class Accepted(Answer):
    """A dataset and the job that learns it."""

    dataset: DatasetSummary
    job: Job
