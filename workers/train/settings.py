"""Settings of the training processes: the only place in workers/train/ that reads the environment."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainSettings(BaseSettings):
    """Read once by each process that needs them."""

    model_config = SettingsConfigDict(env_prefix="CMCL_", frozen=True, extra="ignore")

    checkpoint_seconds: float = Field(
        default=60,
        gt=0,
        description="between two checkpoints of a dataset: at most so much is trained again",
    )
    scratch_bytes: int = Field(
        default=0,
        ge=0,
        description="of the local disk (TMPDIR) that one rank may use for rows and copies of shards; "
        "0: all that is free",
    )
    peer_seconds: float = Field(
        default=60,
        ge=2,
        le=3600,
        description="a rank that the others have waited for so long hangs, and all are replaced",
    )
