"""Events, webhooks and their deliveries."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field, SecretStr, field_serializer

from cmcl.contract.responses import ApiModel


class EventKind(StrEnum):
    """A kind of event. Those of jobs are named after the state that the job has entered."""

    JOB_QUEUED = "job.queued"
    JOB_PREPARING = "job.preparing"
    JOB_PREPARED = "job.prepared"
    JOB_SUBMITTING = "job.submitting"
    JOB_RUNNING = "job.running"
    JOB_GATING = "job.gating"
    JOB_HELD = "job.held"
    JOB_PUBLISHED = "job.published"
    JOB_REPORTED = "job.reported"
    JOB_EVALUATED = "job.evaluated"
    JOB_REJECTED = "job.rejected"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_CANCEL_REQUESTED = "job.cancel_requested"
    VERSION_PUBLISHED = "version.published"
    VERSION_PROMOTED = "version.promoted"
    VERSION_ROLLED_BACK = "version.rolled_back"
    VERSION_RETIRED = "version.retired"
    MODEL_BRANCHED = "model.branched"
    MODEL_GATE = "model.gate"
    MODEL_MODALITY = "model.modality"
    MODEL_DRIFTED = "model.drifted"
    MODEL_DELETED = "model.deleted"
    DATASET_DELETED = "dataset.deleted"
    WEBHOOK_TEST = "webhook.test"


class StreamedEvent(ApiModel):
    """An event of a stream, or a report of progress: it has no `id`, since a stream cannot resume after it."""

    id: int | None = None
    kind: str
    model: str | None = None
    dataset: str | None = None
    job: str | None = None
    version: int | None = None
    details: dict[str, Any] = Field(default={})
    created_at: datetime | None = None


class Event(StreamedEvent):
    """An event."""

    id: int = Field(description="increasing; a stream continues after it (`Last-Event-ID`)")
    kind: str
    model: str
    dataset: str | None
    job: str | None
    version: int | None
    details: dict[str, Any]
    created_at: datetime


class Webhook(ApiModel):
    """A webhook, without its secret."""

    id: str
    owner: str = Field(description="owner whose events it gets; `*` for those of all owners")
    url: str
    kinds: list[str]
    model: str | None
    every_owner: bool = Field(description="whether it gets events of all owners")
    created_at: datetime
    failing_since: datetime | None = Field(description="since when no delivery has succeeded")
    disabled_at: datetime | None = Field(description="since when nothing is sent to it")
    disabled_reason: str | None


class CreatedWebhook(Webhook):
    """A webhook with its secret, which is returned once."""

    secret: SecretStr | None = Field(description="verifies signatures; null in a replayed response")

    @field_serializer("secret", when_used="json")
    def _plain_in_json(self, value: SecretStr | None) -> str | None:
        return value.get_secret_value() if value else None


class Delivery(ApiModel):
    """A message and the state of its delivery."""

    id: str = Field(description="the message's `webhook-id`, equal for all attempts")
    webhook: str
    payload: dict[str, Any]
    attempts: int
    next_at: datetime | None = Field(description="time of the next attempt; null if there is none")
    status: int | None = Field(description="last status of the receiver")
    error: str | None
    created_at: datetime
    delivered_at: datetime | None
    failed_at: datetime | None = Field(description="when it was abandoned")
