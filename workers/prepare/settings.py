"""Settings of preparation."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class PrepareSettings(BaseSettings):
    """Environment variables of preparation (prefix `CMCL_PREPARE_`)."""

    model_config = SettingsConfigDict(env_prefix="CMCL_PREPARE_", frozen=True, extra="ignore")

    file_memory: int = Field(
        default=0,
        ge=0,
        description="bytes of memory of a process that reads files of users; 0: a quarter of the memory that Ray "
        "counts for the smallest node, 1 to 8 GiB. Each unit in work has one such process, and reserves this and "
        "0.5 GiB of its node's memory",
    )
