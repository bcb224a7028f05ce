"""Settings of the training processes. Without torch, for those that only start a run."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainSettings(BaseSettings):
    """Environment variables of the training processes (prefix `CMCL_`)."""

    model_config = SettingsConfigDict(env_prefix="CMCL_", frozen=True, extra="ignore")

    checkpoint_seconds: float = Field(
        default=60,
        gt=0,
        description="seconds between two checkpoints of a dataset; at most this much is trained again",
    )
    scratch_bytes: int = Field(
        default=0,
        ge=0,
        description="bytes of the local disk (TMPDIR) that one rank may use for rows and copies of "
        "shards; 0: all free space",
    )
    peer_seconds: float = Field(
        default=60,
        ge=2,
        le=3600,
        description="timeout of collectives and health checks; a rank that exceeds it counts as hung, and "
        "all ranks are replaced",
    )
