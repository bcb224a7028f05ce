"""Settings of the control plane: the only place in service/ that reads the environment.

Every field is the environment variable CMCL_<FIELD>. The table of settings in the documentation is
generated from here, and the Helm chart's environment is checked against it.
"""

import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

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
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on")
    max_attempts: int = Field(
        default=3, ge=1, description="attempts of a job before it counts as failed"
    )
    reconcile_seconds: float = Field(
        default=0.2, gt=0, description="pause between two looks at the unfinished jobs"
    )
    start_deadline_seconds: float = Field(
        default=600,
        gt=0,
        description="time for an attempt to report progress, and for shards to become readable",
    )
    run_deadline_seconds: float = Field(
        default=86400, gt=0, description="time for an attempt from its start to its candidate"
    )
    max_body_bytes: int = Field(default=1024 * 1024, ge=1, description="largest request body")
    worker_command: str = Field(
        default="python -m workers.train", description="what the launcher runs, without options"
    )
    log_level: LogLevel = Field(default="info", description="least severe level that is logged")

    @field_validator("allowed_prefixes", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("worker_command")
    @classmethod
    def _must_be_a_command(cls, value: str) -> str:
        if not shlex.split(value):
            raise ValueError("it is empty; give a program, such as python -m workers.train")
        return value
