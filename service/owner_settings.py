"""Settings of owners: their quotas, and what the operator grants to single ones."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from cmcl.contract.methods import Priority
from cmcl.contract.modality import Frozen
from service.launchers.kuberay_resource import check_queue
from service.principal import DEFAULT_OWNER
from service.setting_values import JsonObject

_PLACEHOLDER = "{owner}"


Quota = Literal["running_jobs", "models", "datasets", "uploads", "upload_bytes", "keys", "webhooks"]
# With which variable the operator raises the limit of each; those that are left out are the same for all.
RAISED_BY: Mapping[Quota, str] = {
    "running_jobs": "CMCL_RUNNING_JOBS_PER_OWNER",
    "models": "CMCL_MODELS_PER_OWNER",
    "datasets": "CMCL_OWNERS",
    "uploads": "CMCL_OWNERS",
    "upload_bytes": "CMCL_UPLOAD_BYTES_PER_OWNER_MAX",
}
# Valid keys and those made within the last hour: enough for rotation, and a list that replicas read often stays small.
MOST_KEYS = 100
# Each event is stored once for each webhook.
MOST_WEBHOOKS = 50
# From their creation until they are removed; bounds the rows and folders of uploads that were never completed.
MOST_UPLOADS = 10_000


class OwnerGrant(Frozen):
    """What one owner gets in place of the settings for all owners. A field that is left out changes nothing."""

    running_jobs: int | None = Field(
        default=None,
        ge=0,
        description="maximum attempts at a time, in place of running_jobs_per_owner",
    )
    models: int | None = Field(
        default=None, ge=0, description="maximum models, in place of models_per_owner"
    )
    datasets: int | None = Field(
        default=None,
        ge=0,
        description="maximum datasets, without deleted ones; without it, unlimited",
    )
    uploads: int | None = Field(
        default=None,
        ge=0,
        description=f"maximum uploads, from their creation until they are removed, in place of {MOST_UPLOADS:,}",
    )
    upload_bytes: int | None = Field(
        default=None,
        ge=0,
        description="maximum bytes of all uploads, in place of upload_bytes_per_owner_max",
    )
    high_priority: bool = Field(
        default=False,
        description="whether models of priority high start before the models of other owners",
    )
    queue: str | None = Field(
        default=None, description="Kueue LocalQueue, in place of kuberay_queue"
    )

    @field_validator("queue")
    @classmethod
    def _must_be_a_queue(cls, value: str | None) -> str | None:
        if value is not None:
            check_queue(value)
        return value


class OwnerSettings(BaseSettings):
    """A part of `service.settings.Settings`, which is read from the environment as a whole."""

    owners: JsonObject[str, OwnerGrant] = Field(
        default={},
        description="grants to single owners, as a JSON object of owner and an object with any of "
        + ", ".join(OwnerGrant.model_fields)
        + " (see A grant below)",
    )
    running_jobs_per_owner: int = Field(
        default=0,
        ge=0,
        description="maximum attempts of one owner at a time; further ones wait. 0: unlimited, and owners share "
        "what there is equally",
    )
    models_per_owner: int = Field(
        default=500,
        ge=1,
        description="maximum models of one owner, counting branches and deleted models created within the "
        "last hour; a further one is answered with 409. The operator is not limited",
    )
    upload_bytes_per_owner_max: int = Field(
        default=0,
        ge=0,
        description="maximum total bytes of one owner's uploads, from their creation until they are "
        "removed; concurrent creations may exceed it. 0: unlimited",
    )
    kuberay_queue: str = Field(
        default="",
        description="Kueue LocalQueue in which RayJobs wait; without it they start at once. {owner} in it stands for "
        "the owner of the job",
    )

    def grant(self, owner: str) -> OwnerGrant:
        """The grant to an owner; without one, nothing."""
        return self.owners.get(owner, OwnerGrant())

    def limit(self, owner: str, quota: Quota) -> int | None:
        """The limit of an owner; None: unlimited."""
        granted: int | None = getattr(self.grant(owner), quota, None)
        if granted is not None:
            return granted
        everyones: dict[Quota, int | None] = {
            "running_jobs": self.running_jobs_per_owner,
            "models": self.models_per_owner,
            "datasets": None,
            "uploads": MOST_UPLOADS,
            "upload_bytes": self.upload_bytes_per_owner_max,
            "keys": MOST_KEYS,
            "webhooks": MOST_WEBHOOKS,
        }
        return everyones[quota] or None

    def queue_of(self, owner: str) -> str:
        """The LocalQueue in which an owner's RayJobs wait; empty without one."""
        return self.grant(owner).queue or self.kuberay_queue.replace(_PLACEHOLDER, owner)

    def cluster_priority(self, owner: str, priority: Priority) -> Priority:
        """The priority with which a queue of the cluster ranks an attempt.

        Where owners share a queue, `high` would pass other owners; it is the operator's to grant.
        """
        granted = self.grant(owner)
        has_own_queue = granted.queue is not None or _PLACEHOLDER in self.kuberay_queue
        is_capped = priority == "high" and not (granted.high_priority or has_own_queue)
        return "normal" if is_capped else priority

    @field_validator("kuberay_queue")
    @classmethod
    def _must_be_a_queue(cls, value: str) -> str:
        if value:
            check_queue(value.replace(_PLACEHOLDER, DEFAULT_OWNER))
        return value
