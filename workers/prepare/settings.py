"""Settings of preparation."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class PrepareSettings(BaseSettings):
    """Environment variables of preparation (prefix `CMCL_PREPARE_`)."""

    model_config = SettingsConfigDict(env_prefix="CMCL_PREPARE_", frozen=True, extra="ignore")

    datasets_at_once: int = Field(
        default=4,
        ge=1,
        le=64,
        description="datasets that are prepared at the same time; the last place is kept for an owner that "
        "has none",
    )
    units_at_once: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="units of one dataset that are prepared at the same time, each on a Ray CPU; 0: a "
        "quarter of the cluster's CPUs, at least 2",
    )
    encoder_idle_seconds: float = Field(
        default=120, ge=0, description="how long an encoder stays loaded without a dataset"
    )
    encoder_start_seconds: float = Field(
        default=600,
        gt=0,
        description="how long the cluster may take to start an encoder, or to start it again",
    )
    file_seconds: float = Field(
        default=3600, gt=0, description="time in which one file, or the rows of a unit, are read"
    )
    file_memory: int = Field(
        default=0,
        ge=0,
        description="bytes of memory of a process that reads files of users; 0: a quarter of the memory that Ray "
        "counts for the smallest node, 1 to 8 GiB. Each unit in work has one such process, and reserves this and "
        "0.5 GiB of its node's memory",
    )
