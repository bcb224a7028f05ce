"""Result types of the control plane: jobs, events, datasets, uploads, keys, webhooks."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.preflight import Outlook


class ApiModel(BaseModel):
    """Base class of results. Instances are frozen, and keep fields that a newer service adds.

    Fields can also be read by name, `job["state"]`, including those without an attribute.
    """

    # Validators are built on first use, because most programs use few of these types.
    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    def __getitem__(self, name: str) -> Any:
        """Return a field by name. Raises KeyError."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by name, or `default` if the response does not have it."""
        try:
            return self[name]
        except KeyError:
            return default


FINAL_STATES = frozenset({"published", "rejected", "failed", "cancelled"})


class JobProgress(ApiModel):
    """Last progress report of the current attempt. Figures that its phase does not have are None or 0."""

    phase: str
    updates_done: int = 0
    updates_total: int = 0
    rows_done: int = Field(default=0, description="rows read, over all ranks")
    rows_total: int = 0
    loss: float | None = Field(default=None, description="loss of the last batch")
    rows_per_second: float | None = Field(
        default=None, description="rows per second, over all ranks"
    )
    gradient_norm: float | None = Field(
        default=None, description="norm of the gradient of both heads, after protection"
    )
    removed_share: float | None = Field(
        default=None, description="share of the squared gradient that protection removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of the relative change of earlier scores in this job; "
        "the certificate of the version is exact",
    )
    eta_seconds: float | None = Field(default=None, description="seconds until the phase ends")
    ranks: int | None = Field(default=None, description="number of ranks")
    note: str | None = Field(default=None, description="why the attempt has no ranks yet")
    resumed_at: int | None = Field(
        default=None, description="update at which the attempt resumed from a checkpoint"
    )
    at: datetime | None = None


class Approval(ApiModel):
    """Approval or rejection of a candidate by a person."""

    decision: str
    actor: str
    reason: str
    at: datetime


class Job(ApiModel):
    """A job with its state and progress."""

    id: str
    model: str
    dataset: str
    state: str
    reason: str | None = Field(default=None, description="why it was rejected or failed")
    message: str | None = Field(default=None, description="the reason, as a message for people")
    attempt: int
    progress: JobProgress | None = None
    approval: Approval | None = None
    parent_version: int | None = None
    version: int | None = None
    cancel_requested: bool = False
    created_at: datetime
    state_changed_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.state in FINAL_STATES


class Event(ApiModel):
    """An event of the feed. Progress events have no `id`, because a stream cannot resume after them."""

    id: int | None = None
    kind: str
    model: str | None = None
    dataset: str | None = None
    job: str | None = None
    version: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None


class DatasetSummary(ApiModel):
    """A dataset without its shards."""

    id: str
    model: str
    name: str
    pair: ModalityPair
    job: str | None = Field(default=None, description="None while the dataset is open")
    rows: int | None = Field(default=None, description="None until it is validated")
    quarantine_reason: str | None = None
    created_at: datetime
    sealed_at: datetime | None = Field(default=None, description="None while it is open")


class Dataset(DatasetSummary):
    """A dataset with its shards."""

    shards: tuple[ShardRef, ...]
    evaluation_shards: tuple[ShardRef, ...] = ()
    evaluation_share: float | None = None
    manifest: DatasetManifest | None = None


class AcceptedDataset(ApiModel):
    """A dataset and the job that trains on it."""

    dataset: DatasetSummary
    job: Job


class Preflight(ApiModel):
    """A check of a dataset against a version, with its result once it has ended."""

    id: str
    model: str
    version: int
    pair: ModalityPair
    state: str
    attempt: int = 0
    outlook: Outlook | None = None
    message: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the pre-flight is done or failed."""
        return self.state in ("done", "failed")


class UploadPart(ApiModel):
    """A part that has arrived."""

    number: int
    bytes: int
    sha256: str


class Presigned(ApiModel):
    """A signed URL for a direct upload."""

    method: str
    url: str = Field(repr=False)
    headers: dict[str, str] = Field(repr=False)
    expires_at: datetime


class Upload(ApiModel):
    """An upload. Once complete, datasets can name its `uri`."""

    id: str
    filename: str
    bytes: int
    sha256: str | None = None
    state: str = Field(description="open, completing or complete")
    parts: list[UploadPart] = Field(default_factory=list)
    part_bytes_min: int = 1
    part_bytes_max: int = 16 * 2**20
    uri: str | None = None
    presigned: Presigned | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class UploadProgress:
    """Bytes of a file that have arrived."""

    path: Path
    sent: int
    total: int


class ApiKey(ApiModel):
    """An API key, without its secret."""

    id: str
    name: str
    owner: str | None = None
    scopes: list[str]
    created_at: datetime
    created_by: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class NewApiKey(ApiKey):
    """A new API key with its secret, which is returned only once.

    The secret is hidden in `repr`; read it with `key.get_secret_value()`.
    """

    key: SecretStr | None = None

    @field_serializer("key", when_used="json")
    def _plain_in_json(self, value: SecretStr | None) -> str | None:
        """Include the secret in JSON, so that it can be stored."""
        return value.get_secret_value() if value else None


class Whoami(ApiModel):
    """The identity and scopes of the caller's key."""

    name: str
    owner: str | None = None
    scopes: list[str]


class Webhook(ApiModel):
    """An address to which events are delivered."""

    id: str
    url: str
    kinds: list[str]
    model: str | None = None
    every_owner: bool = False
    created_at: datetime
    failing_since: datetime | None = None
    disabled_at: datetime | None = None
    disabled_reason: str | None = None


class NewWebhook(Webhook):
    """A new webhook with its signing secret, which is returned only once.

    The secret is hidden in `repr`; read it with `secret.get_secret_value()`.
    """

    secret: SecretStr | None = None

    @field_serializer("secret", when_used="json")
    def _plain_in_json(self, value: SecretStr | None) -> str | None:
        """Include the secret in JSON, so that it can be stored."""
        return value.get_secret_value() if value else None


class Delivery(ApiModel):
    """A message to a webhook, and its outcome."""

    id: str
    webhook: str
    payload: dict[str, Any] = Field(default_factory=dict)
    attempts: int
    next_at: datetime | None = None
    status: int | None = None
    error: str | None = None
    created_at: datetime | None = None
    delivered_at: datetime | None = None
    failed_at: datetime | None = None
