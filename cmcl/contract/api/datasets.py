"""Datasets, and uploads of their files."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from cmcl.contract.api.jobs import Job, JobState, Prepared
from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.responses import KNOWN_OR_TEXT, ApiModel
from cmcl.contract.version import EvaluationResult


class DatasetSummary(ApiModel):
    """A dataset without its shards."""

    id: str
    model: str
    name: str
    pair: ModalityPair
    job: str | None = Field(description="null while the dataset is open")
    job_state: Annotated[JobState, KNOWN_OR_TEXT] | None = Field(description="state of that job")
    dry_run: bool
    evaluate_only: bool = Field(description="whether it is measured and never learned")
    files: int = Field(
        description="number of its files, held-out ones included; in quotes, the ETag for sealing it"
    )
    rows: int | None = Field(description="rows to train on; null until it is prepared")
    evaluation_rows: int | None = Field(
        description="rows that are held out; null until it is prepared"
    )
    quarantine_reason: str | None = Field(description="why its rows cannot be used")
    created_at: datetime
    sealed_at: datetime | None = Field(description="null while shards can be added")


class Dataset(Prepared, DatasetSummary):
    """A dataset as it was posted, and its manifest."""

    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...]
    evaluation_share: float | None
    max_bad_share: float | None
    evaluation: EvaluationResult | None = Field(
        description="of a dataset that is measured only: its recall in the newest version that was measured; the manifest "
        "of each version has its own"
    )
    manifest: DatasetManifest | None = Field(
        description="digest and rows of each shard; null until it is prepared"
    )


class PostedDataset(ApiModel):
    """A dataset and the job that learns or measures it; an open dataset has no job."""

    dataset: DatasetSummary
    job: Job | None


class AcceptedDataset(PostedDataset):
    """A dataset and the job that learns or measures it."""

    job: Job


class Upload(ApiModel):
    """An upload as it was announced, and whether its file has arrived."""

    id: str
    filename: str
    bytes: int
    sha256: str | None = Field(description="as announced; as measured once complete")
    state: Annotated[Literal["open", "complete"], KNOWN_OR_TEXT]
    uri: str | None = Field(
        description="address for the shard of a dataset; null before it is complete"
    )
    created_at: datetime
    completed_at: datetime | None
    expires_at: datetime = Field(
        description="deadline to send the file, and once complete, to name it in a dataset"
    )
