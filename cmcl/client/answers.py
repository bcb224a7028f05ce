"""Answers of the control plane about jobs, events, datasets, files, keys and webhooks."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer

from cmcl.contract.dataset import DatasetManifest, ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.preflight import Outlook


class Answer(BaseModel):
    """Frozen. A newer service may tell more than this client knows: it is kept and printed.

    A field can also be read by its name, `job["state"]`, which is how those are read that have no
    attribute here yet.
    """

    # Built when first needed: most programs ask for few of them.
    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    def __getitem__(self, name: str) -> Any:
        """Raises KeyError."""
        told = {**self.__dict__, **(self.__pydantic_extra__ or {})}
        return told[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The field of that name, or `default` where the service told none."""
        try:
            return self[name]
        except KeyError:
            return default


FINAL_STATES = frozenset({"published", "rejected", "failed", "cancelled"})


class JobProgress(Answer):
    """What the present attempt told last; a figure that its phase does not have is None, or 0."""

    phase: str
    updates_done: int = 0
    updates_total: int = 0
    rows_done: int = Field(default=0, description="rows read, over all ranks")
    rows_total: int = 0
    loss: float | None = Field(default=None, description="of the last batch")
    rows_per_second: float | None = Field(default=None, description="over all ranks")
    gradient_norm: float | None = Field(
        default=None, description="of both heads together, after protection removed its share"
    )
    removed_share: float | None = Field(
        default=None, description="share of the gradient's square that protection removed, 0 to 1"
    )
    drift: float | None = Field(
        default=None,
        description="first-order estimate of how far earlier scores have moved in this job; "
        "the certificate of the version is exact",
    )
    eta_seconds: float | None = Field(default=None, description="until the phase is over")
    ranks: int | None = Field(default=None, description="processes that share the batch")
    note: str | None = Field(default=None, description="why the attempt has no ranks yet")
    resumed_at: int | None = Field(
        default=None, description="updates that a checkpoint spared this attempt"
    )
    at: datetime | None = None


class Approval(Answer):
    """What a person said about a candidate."""

    decision: str
    actor: str
    reason: str
    at: datetime


class Job(Answer):
    """A job: where it stands, and why."""

    id: str
    model: str
    dataset: str
    state: str
    reason: str | None = Field(default=None, description="why it was rejected or has failed")
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
        """Whether nothing more happens to it by itself."""
        return self.state in FINAL_STATES


class Event(Answer):
    """An event of the feed. Progress has no `id`, because a stream cannot be resumed after it."""

    id: int | None = None
    kind: str
    model: str | None = None
    dataset: str | None = None
    job: str | None = None
    version: int | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime | None = None


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


class Preflight(Answer):
    """A question to a version, and its answer once there is one."""

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
        """Whether there is an answer, or there will be none."""
        return self.state in ("done", "failed")


class UploadPart(Answer):
    """One part as it arrived."""

    number: int
    bytes: int
    sha256: str


class Presigned(Answer):
    """A signed address to which the file is written directly."""

    method: str
    url: str = Field(repr=False)
    headers: dict[str, str] = Field(repr=False)
    expires_at: datetime


class Upload(Answer):
    """An upload; once complete, its `uri` can stand in a dataset."""

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
    """How much of a file has arrived."""

    path: Path
    sent: int
    total: int


class ApiKey(Answer):
    """A key without its secret, which the service does not know either."""

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
    """A new key. Only this answer has its secret.

    It is hidden wherever the object is printed; `key.get_secret_value()` gives it.
    """

    key: SecretStr | None = None

    @field_serializer("key", when_used="json")
    def _told_in_json(self, value: SecretStr | None) -> str | None:
        """JSON is asked for by name, to be kept."""
        return value.get_secret_value() if value else None


class Whoami(Answer):
    """The identity and scopes of the caller's key."""

    name: str
    owner: str | None = None
    scopes: list[str]


class Webhook(Answer):
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
    """A new webhook. Only this answer has the secret of its signatures.

    Hidden wherever the object is printed; `secret.get_secret_value()` gives it.
    """

    secret: SecretStr | None = None

    @field_serializer("secret", when_used="json")
    def _told_in_json(self, value: SecretStr | None) -> str | None:
        """JSON is asked for by name, to be kept."""
        return value.get_secret_value() if value else None


class Delivery(Answer):
    """One message to a webhook, and what became of it."""

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
