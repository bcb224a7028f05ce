"""Settings of the control plane: the only place in service/ that reads the environment.

Every field is the environment variable CMCL_<FIELD>. The table of settings in the documentation is
generated from here, and the Helm chart's environment is checked against it.
"""

import shlex
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cmcl.contract.priority import Priority
from service.launchers.kuberay.pods import read_pod_templates
from service.launchers.kuberay.resource import RAY_VERSION
from service.launchers.labels import check_labels
from service.launchers.runtime_env import check_runtime_env
from service.setting_values import (
    CommaSeparated,
    EncryptionKeys,
    JsonObject,
    OperatorsKey,
    Proxies,
    ServerAddress,
    SigningKey,
)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

LogLevel = Literal["debug", "info", "warning", "error"]


def _local_store() -> str:
    return (Path.cwd() / ".cmcl" / "store").as_uri()


class Settings(BaseSettings):
    """Read once, when the process starts, and passed on as an object."""

    model_config = SettingsConfigDict(env_prefix="CMCL_", frozen=True, extra="ignore")

    database_url: str = Field(
        default="sqlite:///.cmcl/cmcl.db",
        description="SQLAlchemy URL: sqlite:///path or postgresql://user:password@host/name",
    )
    store_uri: str = Field(
        default_factory=_local_store,
        description="root of object storage: file:///folder or s3://bucket/prefix; "
        "without it, the folder .cmcl/store",
    )
    allowed_prefixes: CommaSeparated = Field(
        default=(),
        description="comma-separated addresses under which users' shards may lie; "
        "without one, no dataset is accepted",
    )
    launcher: Literal["ray", "kuberay", "process"] = Field(
        default="ray",
        description="how attempts run: as jobs of one Ray cluster, each as a RayJob of KubeRay with a "
        "cluster of its own, or as processes on this machine",
    )
    ray_address: ServerAddress = Field(
        default="http://127.0.0.1:8265", description="Ray's dashboard, where jobs are submitted"
    )
    ranks: int = Field(default=1, ge=1, description="training processes of one attempt")
    min_ranks: int | None = Field(
        default=None,
        ge=1,
        description="an attempt goes on with so few where there is no room for all; by default it "
        "waits for all",
    )
    gpus_per_rank: float = Field(default=0, ge=0, description="GPUs that each rank asks for")
    ranks_idle_seconds: float = Field(
        default=1800,
        ge=0,
        description="ranks that stay on a Ray cluster leave after so long without an attempt, and "
        "what they hold is free; 0: never",
    )
    runtime_env: JsonObject[str, Any] = Field(
        default={}, description="Ray's runtime environment of attempts, as a JSON object"
    )
    job_labels: JsonObject[str, str] = Field(
        default={}, description="labels of all attempts beside our own, as a JSON object of texts"
    )
    driver_cpus: float = Field(
        default=0, ge=0, description="CPUs that the driver of a Ray job reserves"
    )
    driver_memory_bytes: int = Field(
        default=0, ge=0, description="memory that the driver of a Ray job reserves"
    )
    driver_resources: JsonObject[str, float] = Field(
        default={},
        description="custom resources that the driver of a Ray job reserves, as a JSON object of "
        "numbers",
    )
    driver_node_labels: JsonObject[str, str] = Field(
        default={},
        description="labels of the Ray nodes on which the driver of a Ray job may run, as a JSON "
        "object of texts",
    )
    kuberay_namespace: str = Field(default="default", description="where RayJobs are made")
    kuberay_image: str = Field(
        default="", description="image of their pods; required with the launcher kuberay"
    )
    kuberay_ray_version: str = Field(
        default=RAY_VERSION,
        pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$",
        description="of Ray in that image",
    )
    kuberay_release: str = Field(
        default="",
        max_length=63,
        description="their label app.kubernetes.io/instance, by which those of several installations "
        "can be told apart",
    )
    kuberay_owner: str = Field(
        default="",
        description="ConfigMap in that namespace; when it is deleted, Kubernetes deletes them too",
    )
    kuberay_service_account: str = Field(default="default", description="of their pods")
    kuberay_queue: str = Field(
        default="",
        description="Kueue's LocalQueue in which they wait; without one they start at once",
    )
    kuberay_priority_classes: JsonObject[Priority, str] = Field(
        default={},
        description="Kueue's WorkloadPriorityClass by the model's priority, as a JSON object with "
        "low, normal and high; those left out have none",
    )
    kuberay_ranks_per_pod: int = Field(default=1, ge=1, description="ranks that share a pod")
    kuberay_gpu_resource: str = Field(
        default="nvidia.com/gpu", description="under which name pods ask for GPUs"
    )
    kuberay_pod_template: Path | None = Field(
        default=None,
        description="YAML file with pod templates `head` and `workers`, laid over ours, and `submitter`",
    )
    kuberay_submission_mode: Literal["HTTPMode", "K8sJobMode", "SidecarMode"] = Field(
        default="HTTPMode", description="how KubeRay hands the command to Ray"
    )
    kuberay_kept_seconds: int = Field(
        default=60,
        ge=0,
        description="how long the pods of an attempt outlive its end, for their logs",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    trusted_proxies: Proxies = Field(
        default=("127.0.0.1",),
        description="comma-separated addresses or networks of reverse proxies, which are believed "
        "whose requests they forward",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    max_connections: int = Field(
        default=4096,
        ge=16,
        description="open connections of clients; at the limit a new one takes the place of the one that "
        "has waited longest for its client, or is closed, and one address that is no trusted proxy has "
        "half of them at most",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="attempts of a job before it counts as failed"
    )
    reconcile_seconds: float = Field(
        default=0.2, gt=0, description="pause between two looks at the unfinished jobs"
    )
    lease_seconds: float = Field(
        default=15,
        gt=0,
        description="how long a service that died still keeps others from its models",
    )
    validation_deadline_seconds: float = Field(
        default=3600, gt=0, description="time for reading the shards of one dataset"
    )
    queue_deadline_seconds: float = Field(
        default=3600, gt=0, description="time for the cluster to start an attempt that it took"
    )
    start_deadline_seconds: float = Field(
        default=600,
        gt=0,
        description="time for an attempt to report progress, and for shards to become readable",
    )
    run_deadline_seconds: float = Field(
        default=86400, gt=0, description="time for an attempt from its start to its candidate"
    )
    preflight_deadline_seconds: float = Field(
        default=3600, gt=0, description="time for a pre-flight from its submission to its answer"
    )
    heartbeat_deadline_seconds: float = Field(
        default=300,
        gt=0,
        description="an attempt that is silent for so long counts as lost, and is repeated",
    )
    lost_attempt_grace_seconds: float = Field(
        default=5,
        ge=0,
        description="from an attempt's reported end without a candidate to the next attempt",
    )
    max_body_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        description="largest request body that lists shards, in bytes; other bodies have 16 KiB at most, "
        "but for parts of files, and a larger one is answered 413",
    )
    upload_bytes_max: int = Field(default=5 * 2**30, ge=1, description="largest uploaded file")
    upload_part_bytes_max: int = Field(
        default=64 * 2**20, ge=1, description="largest part of an uploaded file"
    )
    upload_bytes_per_owner_max: int = Field(
        default=0,
        ge=0,
        description="bytes that the uploads of one owner may have together, from their announcement until "
        "they are removed, but for what is announced at the same moment; 0: no bound",
    )
    upload_parts_at_once: int = Field(
        default=16,
        ge=2,
        description="parts that one replica of the service takes at one time, each of them with its size "
        "on the disk; one owner gets all but two of them, and more are answered 429",
    )
    upload_expiry_hours: float = Field(
        default=24, gt=0, description="an upload that is not finished by then is removed"
    )
    idempotency_hours: float = Field(
        default=24, gt=0, description="how long the answer to an Idempotency-Key is remembered"
    )
    runs_kept_days: float = Field(
        default=7, ge=0, description="how long what a job's attempts left is kept after its end"
    )
    rejected_kept_days: float = Field(
        default=30, ge=0, description="the same of a rejected candidate, which can be approved"
    )
    events_kept_days: float = Field(default=90, gt=0, description="how long events can be read")
    auth: Literal["on", "off"] = Field(
        default="on",
        description="whether requests need a key; off only where host is this machine's loopback",
    )
    allowed_hosts: CommaSeparated = Field(
        default=(),
        description="comma-separated names, beside this machine's loopback, by which requests may ask "
        "for the service while auth is off; web pages could reach it by names of theirs otherwise",
    )
    admin_key: OperatorsKey | None = Field(
        default=None,
        description="a key that may do everything, for the first steps: 32 characters at least",
    )
    metrics_key: OperatorsKey | None = Field(
        default=None,
        description="what scrapers must send to /metrics as a bearer token: 32 characters at least; "
        "without one, everybody who reaches the port reads names of models there",
    )
    snapshot_signing_key: SigningKey | None = Field(
        default=None,
        description="Ed25519 private key in PEM that signs the list of keys for the embeddings "
        "endpoint; without one no list is written",
    )
    encryption_key: EncryptionKeys | None = Field(
        default=None,
        description="base64 of 32 random bytes under which secrets of webhooks are stored in the database, "
        "or several separated by commas: the first one encrypts, all decrypt; without one, secrets are "
        "stored in the clear",
    )
    requests_per_minute_per_owner: int = Field(
        default=6000,
        ge=1,
        description="requests that all keys and tokens of one owner may send within a minute, counted by "
        "each replica of the service; further ones are answered 429. The operator's key has no limit",
    )
    keys_per_owner: int = Field(
        default=100,
        ge=1,
        description="keys that one owner may have: those that are valid, and those that were made within "
        "the last hour; a further one is answered 409. The operator may make more",
    )
    models_per_owner: int = Field(
        default=500,
        ge=1,
        description="models that one owner may have, branches among them, and deleted ones that were made "
        "within the last hour; a further one is answered 409. The operator may make more",
    )
    webhooks_per_owner: int = Field(
        default=50,
        ge=1,
        description="webhooks that one owner may have; a further one is answered 409. Each event of the "
        "owner is written once for each of them",
    )
    oidc_issuer: str | None = Field(
        default=None, description="issuer of bearer tokens that are accepted beside keys"
    )
    oidc_audience: str | None = Field(
        default=None, description="what the tokens must be meant for; required with an issuer"
    )
    oidc_owner_claim: str = Field(
        default="cmcl_owner", description="claim of a token that names the owner"
    )
    embeddings_url: ServerAddress = Field(
        default="",
        description="address of the embeddings endpoint, which is told at once when another version "
        "answers; empty: replicas find out by looking",
    )
    webhook_prefixes: CommaSeparated = Field(
        default=(),
        description="comma-separated addresses under which webhooks may lie; "
        "without one, any https address of the public internet",
    )
    worker_command: str = Field(
        default="python -m workers.train", description="what the launcher runs, without options"
    )
    log_level: LogLevel = Field(default="info", description="least severe level that is logged")

    @field_validator("runtime_env")
    @classmethod
    def _must_be_a_runtime_env(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_runtime_env(value)
        return value

    @field_validator("job_labels")
    @classmethod
    def _must_be_labels(cls, value: dict[str, str]) -> dict[str, str]:
        check_labels(value)
        return value

    @field_validator("driver_resources")
    @classmethod
    def _must_be_amounts(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if amount < 0:
                raise ValueError(f"{name!r} is {amount:g}; it must be 0 or more")
        return value

    @field_validator("worker_command")
    @classmethod
    def _must_be_a_command(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("it is empty; give a program, such as python -m workers.train")
        return value

    @model_validator(mode="after")
    def _keys_are_asked_for_on_a_network(self) -> Self:
        if self.auth == "off" and self.host not in _LOOPBACK:
            raise ValueError(
                f"CMCL_AUTH is off and CMCL_HOST is {self.host!r}: everybody on the network could "
                f"do everything; set the first to on, or the other to one of {', '.join(_LOOPBACK)}"
            )
        return self

    @model_validator(mode="after")
    def _there_are_enough_ranks(self) -> Self:
        if self.fewest_ranks > self.ranks:
            raise ValueError(
                f"CMCL_MIN_RANKS is {self.min_ranks}; it must be from 1 to CMCL_RANKS, "
                f"which is {self.ranks}"
            )
        return self

    @model_validator(mode="after")
    def _rayjobs_can_be_made(self) -> Self:
        if self.launcher != "kuberay":
            return self
        if not self.kuberay_image:
            raise ValueError("CMCL_KUBERAY_IMAGE is missing: the pods of RayJobs need an image")
        for name in ("cpus", "memory_bytes", "resources", "node_labels"):
            if getattr(self, f"driver_{name}"):
                raise ValueError(
                    f"CMCL_DRIVER_{name.upper()} is set, and a RayJob's driver has the head pod to "
                    "itself: say in CMCL_KUBERAY_POD_TEMPLATE what that needs"
                )
        try:
            read_pod_templates(self.kuberay_pod_template)
        except ValueError as error:
            raise ValueError(f"CMCL_KUBERAY_POD_TEMPLATE: {error}") from error
        return self

    @property
    def fewest_ranks(self) -> int:
        """`min_ranks`, resolved."""
        return self.ranks if self.min_ranks is None else self.min_ranks

    @model_validator(mode="after")
    def _tokens_have_an_audience(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError(
                "CMCL_OIDC_AUDIENCE is missing: tokens for other services would be accepted"
            )
        return self
