"""Settings of the control plane: the only place in service/ that reads the environment.

Every field is the environment variable CMCL_<FIELD>. The table of settings in the documentation is
generated from here, and the Helm chart's environment is checked against it.
"""

import shlex
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from service.launcher_settings import LauncherSettings
from service.setting_values import (
    CommaSeparated,
    EncryptionKeys,
    OperatorsKey,
    Proxies,
    ServerAddress,
    SigningKey,
)

_LOOPBACK = ("127.0.0.1", "::1", "localhost")

LogLevel = Literal["debug", "info", "warning", "error"]


def _local_store() -> str:
    return (Path.cwd() / ".cmcl" / "store").as_uri()


class Settings(LauncherSettings):
    """Read once at startup and passed on as an object."""

    model_config = SettingsConfigDict(env_prefix="CMCL_", frozen=True, extra="ignore")

    database_url: str = Field(
        default="sqlite:///.cmcl/cmcl.db",
        description="SQLAlchemy URL: sqlite:///path or postgresql://user:password@host/name",
    )
    store_uri: str = Field(
        default_factory=_local_store,
        description="root of object storage: file:///folder or s3://bucket/prefix; default: the folder "
        ".cmcl/store",
    )
    allowed_prefixes: CommaSeparated = Field(
        default=(),
        description="comma-separated URI prefixes that users' shards must lie under; if empty, no dataset "
        "is accepted",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    trusted_proxies: Proxies = Field(
        default=("127.0.0.1",),
        description="comma-separated addresses or networks of reverse proxies whose forwarded client "
        "addresses are trusted",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    max_connections: int = Field(
        default=4096,
        ge=16,
        description="maximum open client connections. At the limit, a new connection replaces the one "
        "that has waited longest for its client, or is closed; one address that is not a "
        "trusted proxy may use at most half",
    )
    max_attempts: int = Field(default=3, ge=1, description="attempts before a job fails")
    reconcile_seconds: float = Field(
        default=0.2, gt=0, description="pause between two passes over the unfinished jobs"
    )
    lease_seconds: float = Field(
        default=15,
        gt=0,
        description="how long the leases of a crashed service block other replicas",
    )
    validation_deadline_seconds: float = Field(
        default=3600, gt=0, description="time limit for reading the shards of one dataset"
    )
    queue_deadline_seconds: float = Field(
        default=3600,
        gt=0,
        description="time limit for the cluster to start an attempt that it accepted",
    )
    start_deadline_seconds: float = Field(
        default=600,
        gt=0,
        description="time limit for an attempt to report progress, and for shards to become readable",
    )
    run_deadline_seconds: float = Field(
        default=86400, gt=0, description="time limit for an attempt from its start to its candidate"
    )
    preflight_deadline_seconds: float = Field(
        default=3600, gt=0, description="time limit for a pre-flight from submission to result"
    )
    heartbeat_deadline_seconds: float = Field(
        default=300,
        gt=0,
        description="an attempt without a heartbeat for this long counts as lost and is retried",
    )
    lost_attempt_grace_seconds: float = Field(
        default=5,
        ge=0,
        description="wait after an attempt ended without a candidate before the next one starts",
    )
    max_body_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        description="maximum request body that lists shards, in bytes. Other bodies are limited to 16 "
        "KiB, except upload parts; a larger one is answered with 413",
    )
    upload_bytes_max: int = Field(
        default=5 * 2**30, ge=1, description="maximum size of an uploaded file"
    )
    upload_part_bytes_max: int = Field(
        default=64 * 2**20, ge=1, description="maximum size of one part of an uploaded file"
    )
    upload_bytes_per_owner_max: int = Field(
        default=0,
        ge=0,
        description="maximum total bytes of one owner's uploads, from their creation until they are "
        "removed; concurrent creations may exceed it. 0: unlimited",
    )
    upload_parts_at_once: int = Field(
        default=16,
        ge=2,
        description="upload parts that one replica of the service receives concurrently, each stored on "
        "disk at full size. One owner may use all but two; further ones are answered with 429",
    )
    upload_expiry_hours: float = Field(
        default=24, gt=0, description="an upload that is not completed within this time is removed"
    )
    idempotency_hours: float = Field(
        default=24, gt=0, description="how long the response to an Idempotency-Key is kept"
    )
    runs_kept_days: float = Field(
        default=7,
        ge=0,
        description="how long the files of a job's attempts are kept after the job ends",
    )
    rejected_kept_days: float = Field(
        default=30,
        ge=0,
        description="the same for a rejected candidate, which can still be approved",
    )
    events_kept_days: float = Field(default=90, gt=0, description="how long events can be read")
    auth: Literal["on", "off"] = Field(
        default="on",
        description="whether requests need a key; off is permitted only if host is a loopback address",
    )
    allowed_hosts: CommaSeparated = Field(
        default=(),
        description="comma-separated host names, besides loopback names, that requests may use while auth "
        "is off. Protects against DNS rebinding by web pages",
    )
    admin_key: OperatorsKey | None = Field(
        default=None,
        description="a key with every permission, for bootstrapping; at least 32 characters",
    )
    metrics_key: OperatorsKey | None = Field(
        default=None,
        description="bearer token that scrapers must send to /metrics; at least 32 characters. Without "
        "it, anyone who can reach the port can read model names there",
    )
    snapshot_signing_key: SigningKey | None = Field(
        default=None,
        description="Ed25519 private key in PEM that signs the key snapshot for the embeddings endpoint; "
        "without it, no snapshot is written",
    )
    encryption_key: EncryptionKeys | None = Field(
        default=None,
        description="base64 of 32 random bytes that encrypts webhook secrets in the database, or several "
        "separated by commas: the first encrypts, all decrypt. Without it, secrets are stored "
        "unencrypted",
    )
    requests_per_minute_per_owner: int = Field(
        default=6000,
        ge=1,
        description="requests per minute for all keys and tokens of one owner, counted by each replica of "
        "the service; further ones are answered with 429. The operator's key is not limited",
    )
    keys_per_owner: int = Field(
        default=100,
        ge=1,
        description="maximum keys of one owner, counting valid ones and those created within the last "
        "hour; a further one is answered with 409. The operator is not limited",
    )
    models_per_owner: int = Field(
        default=500,
        ge=1,
        description="maximum models of one owner, counting branches and deleted models created within the "
        "last hour; a further one is answered with 409. The operator is not limited",
    )
    heads_bytes_max: int = Field(
        default=512 << 20,
        ge=1,
        description="maximum size of the heads of one version with every modality learned; a model, "
        "branch, dataset or candidate above it is rejected. Should be at most half of the "
        "replicas' `max_heads_bytes`, because a swap holds both the old and the new version",
    )
    webhooks_per_owner: int = Field(
        default=50,
        ge=1,
        description="maximum webhooks of one owner; a further one is answered with 409. Each event is "
        "stored once for each webhook",
    )
    oidc_issuer: str | None = Field(
        default=None, description="issuer of bearer tokens that are accepted besides keys"
    )
    oidc_audience: str | None = Field(
        default=None, description="required audience of the tokens; required with an issuer"
    )
    oidc_owner_claim: str = Field(
        default="cmcl_owner", description="token claim that names the owner"
    )
    embeddings_url: ServerAddress = Field(
        default="",
        description="address of the embeddings endpoint, which is notified when the live version changes; "
        "if empty, replicas find out by polling",
    )
    webhook_prefixes: CommaSeparated = Field(
        default=(),
        description="comma-separated URL prefixes that webhooks must lie under; if empty, any public "
        "https address is permitted",
    )
    worker_command: str = Field(
        default="python -m workers.train",
        description="command that the launcher runs, without options",
    )
    log_level: LogLevel = Field(default="info", description="minimum level of log records")

    @field_validator("worker_command")
    @classmethod
    def _must_be_a_command(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("it is empty; give a program, such as python -m workers.train")
        return value

    @model_validator(mode="after")
    def _network_needs_auth(self) -> Self:
        if self.auth == "off" and self.host not in _LOOPBACK:
            raise ValueError(
                f"CMCL_AUTH is off and CMCL_HOST is {self.host!r}: anyone on the network would have "
                f"full access; set CMCL_AUTH to on, or CMCL_HOST to one of {', '.join(_LOOPBACK)}"
            )
        return self

    @model_validator(mode="after")
    def _tokens_have_an_audience(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError(
                "CMCL_OIDC_AUDIENCE is missing: tokens for other services would be accepted"
            )
        return self
