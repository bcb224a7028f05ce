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
    heads_bytes_max: int = Field(
        default=512 << 20,
        ge=1,
        description="heads of one version, with every modality learned: a model, branch, dataset or "
        "candidate above it is refused. At most half of `max_heads_bytes` of the replicas, as a swap holds "
        "the old version and the new one",
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
    def _tokens_have_an_audience(self) -> Self:
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError(
                "CMCL_OIDC_AUDIENCE is missing: tokens for other services would be accepted"
            )
        return self
