"""Preparation: files of users are converted to verified internal shards, before the dataset is learned.

The control plane writes a request to object storage, and a process on the cluster writes progress and result there.

A dry run ends with a report: how the dataset would be learned, predicted without training on it.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmcl.contract.dataset import RejectedRow, ShardRef, Uri
from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.modality import Frozen, Modality, ModalityPair, ModelName
from cmcl.contract.model import ModelSpec
from cmcl.contract.responses import KNOWN_OR_TEXT, ApiModel

PreparationPhase = Literal["waiting", "planning", "reading", "encoding", "finishing", "reporting"]

PreparationError = Literal[
    "invalid_dataset",  # the files or too many rows cannot be used
    "encoder_mismatch",  # an encoder is not the one that computed the earlier features
    "encoder_unavailable",  # an encoder does not start, or an item ends it
]


class PrepareRequest(Frozen):
    """`preparations/<dataset>.json`: written by the control plane, and deleted by it when the job is no longer
    being prepared. A request that disappears is cancelled.

    `request`: number of the request, which grows with each retry; results of earlier requests do not count.
    `encoders`: declarations of the encoders that the model binds to the two modalities. `identities`: by
    modality, the encoder of the features that the model has; another one is a mismatch. `locations`: the
    address in the service's own store for each address that stands for an upload.
    """

    dataset: str
    request: int = Field(ge=0)
    owner: str
    model: ModelName
    name: str
    spec: ModelSpec
    pair: ModalityPair
    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...] = ()
    evaluation_share: float | None = None
    evaluate_only: bool = Field(
        default=False, description="hold out all rows of `shards`, and train on none"
    )
    max_bad_share: float | None = Field(
        default=None,
        description="largest share of rows that may be left out; None: 0.01 of raw rows, and no row of "
        "features",
    )
    encoders: dict[Modality, EncoderSpec] = Field(default={})
    declared: dict[Modality, EncoderIdentity] = Field(
        default={}, description="encoders that the user says computed the posted features"
    )
    identities: dict[Modality, EncoderIdentity] = Field(default={})
    allowed_prefixes: tuple[str, ...] = ()
    locations: dict[Uri, Uri] = Field(default={})
    report_version: int | None = Field(
        default=None,
        ge=0,
        description="of a dry run: the newest version, 0 before the first. The report is the only result",
    )
    traceparent: str | None = Field(
        default=None, description="of the preparation's span, if it is traced"
    )


class PrepareProgress(ApiModel):
    """`datasets/<dataset>/preparation/progress.json`: overwritten while the dataset is prepared."""

    request: int = Field(ge=0)
    phase: Annotated[PreparationPhase, KNOWN_OR_TEXT]
    rows_done: int = Field(default=0, ge=0, description="rows with a verdict, good or bad")
    rows_total: int = Field(default=0, ge=0, description="0 while it is unknown")
    bad_rows: int = Field(default=0, ge=0, description="rows that are left out")
    rows_per_second: float | None = None
    eta_seconds: float | None = None
    note: str | None = Field(default=None, description="why it does not progress")
    at: datetime


class PrepareFailure(Frozen):
    """`datasets/<dataset>/preparation/failure.json`: why the dataset cannot be prepared."""

    request: int = Field(ge=0)
    reason: PreparationError
    message: str
    rejected_rows: int = Field(
        default=0, ge=0, description="rows that cannot be used; rejected.jsonl lists them"
    )
    needed_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="the `max_bad_share` with which the dataset would be accepted; null if it is not known, or no row "
        "is usable",
    )
    rejected: tuple[RejectedRow, ...] = Field(
        default=(), max_length=20, description="the first of these"
    )


class _Reported(BaseModel):
    """Unknown fields are ignored: workers may be newer than the service."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RowFindings(_Reported):
    """What is odd in the features of one side."""

    rows: int = Field(description="rows read: all, or a sample of a large dataset")
    width: int
    duplicate_rows: int = Field(description="rows that equal an earlier one")
    constant_columns: int
    rank_one: bool = Field(description="all rows are multiples of one")
    familiarity: float | None = Field(
        default=None,
        description="how much more of the features is in the span of earlier ones than of random directions, 0 to 1; "
        "low if another encoder produced them, null without earlier data",
    )


class BadShard(_Reported):
    """A shard whose pairs do not agree with those of the other shards."""

    file: Uri = Field(description="the file as it was posted, or its shard in the store")
    part: int | None = Field(
        description="which of the sampled shards of that file, from 1; null if it is one shard"
    )
    rows: int
    mismatched: float = Field(
        description="estimated share of its pairs that do not belong together, 0 to 1"
    )
    limit: float = Field(
        description="the largest share that the spread of the other shards explains"
    )

    @property
    def advice(self) -> str:
        """What is wrong with it, and what to do."""
        name = self.file if self.part is None else f"{self.file}, part {self.part}"
        return (
            f"{name}: about {100 * self.mismatched:.0f} % of its {self.rows:,} pairs do not belong together, by heads "
            f"that were solved from the other shards ({100 * self.limit:.0f} % may be chance): check how its rows were "
            "joined, or post the dataset without it."
        )


class DatasetReport(_Reported):
    """The result: whether and why it would be rejected, and problems."""

    version: int = Field(
        description="version from which the dataset would be learned; 0 before the first"
    )
    pair: tuple[str, str]
    rows: int = Field(default=0, ge=0, description="rows to train on")
    evaluation_rows: int = Field(default=0, ge=0, description="rows that are held out")
    rejected_rows: int = Field(default=0, ge=0, description="rows that would be left out")
    rejected: tuple[RejectedRow, ...] = Field(
        default=(), max_length=20, description="the first of these"
    )
    encoders: dict[Modality, EncoderIdentity] = Field(
        default={},
        description="by modality: the encoder that computed its features, or that was declared; missing: "
        "undeclared",
    )
    refusals: tuple[str, ...] = Field(description="why it would be rejected; empty if it would not")
    findings: dict[str, RowFindings] = Field(description="by modality; missing if unreadable")
    bad_shards: tuple[BadShard, ...] = Field(
        default=(), description="shards with pairs that do not belong together"
    )
    covered_drift: dict[Modality, float] = Field(
        default={},
        description="by modality whose queries drift: share of the drift that would end with this dataset, 0 to 1",
    )
    advice: tuple[str, ...] = Field(description="advice on problems")


class PrepareReport(BaseModel):
    """`datasets/<dataset>/preparation/report.json`: the result of a dry run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: int = Field(ge=0)
    report: DatasetReport
