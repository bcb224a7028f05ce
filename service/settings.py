"""Settings of the control plane: the only place in service/ that reads the environment.

Every field is the environment variable CMCL_<FIELD>. The table of settings in the documentation is
generated from here, and the Helm chart's environment is checked against it.
"""

import shlex
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHORTEST_KEY = 32

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
    allowed_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="comma-separated addresses under which users' shards may lie; "
        "without one, no dataset is accepted",
    )
    launcher: Literal["ray", "process"] = Field(
        default="ray",
        description="how attempts run: as Ray jobs, or as processes on this machine",
    )
    ray_address: str = Field(
        default="http://127.0.0.1:8265", description="Ray's dashboard, where jobs are submitted"
    )
    ranks: int = Field(default=1, ge=1, description="training processes of one attempt")
    gpus_per_rank: float = Field(default=0, ge=0, description="GPUs that each rank asks for")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1",),
        description="comma-separated addresses or networks of reverse proxies, which are believed "
        "whose requests they forward",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
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
    max_body_bytes: int = Field(default=1024 * 1024, ge=1, description="largest request body")
    upload_bytes_max: int = Field(default=5 * 2**30, ge=1, description="largest uploaded file")
    upload_part_bytes_max: int = Field(
        default=64 * 2**20, ge=1, description="largest part of an uploaded file"
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
    admin_key: SecretStr | None = Field(
        default=None,
        description="a key that may do everything, for the first steps: 32 characters at least",
    )
    requests_per_minute_per_key: int = Field(
        default=6000, ge=1, description="before 429; counted by each replica of the service"
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
    webhook_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="comma-separated addresses under which webhooks may lie; "
        "without one, any https address of the public internet",
    )
    worker_command: str = Field(
        default="python -m workers.train", description="what the launcher runs, without options"
    )
    log_level: LogLevel = Field(default="info", description="least severe level that is logged")

    @field_validator("allowed_prefixes", "webhook_prefixes", "trusted_proxies", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _must_be_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in value:
            try:
                ip_network(proxy)
            except ValueError as error:
                raise ValueError(
                    f"{proxy!r} is neither an address nor a network, such as 10.0.3.7 or 10.0.3.0/24"
                ) from error
        return value

    @field_validator("worker_command")
    @classmethod
    def _must_be_a_command(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("it is empty; give a program, such as python -m workers.train")
        return value

    @field_validator("admin_key")
    @classmethod
    def _must_be_hard_to_guess(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _SHORTEST_KEY:
            raise ValueError(f"it has fewer than {_SHORTEST_KEY} characters; make a random one")
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
