"""Settings of the training processes, and the timeouts that follow from them."""

import os
from dataclasses import dataclass

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

# Two modalities of width 1280 with a lift of 1024 have 41 MiB.
IN_FULL_BYTES = 40 * 2**20


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
    moments_in_full_bytes: int = Field(
        default=IN_FULL_BYTES,
        ge=0,
        description="bytes up to which the moments that a dataset adds under the policy improve are kept as they are; "
        "larger ones are kept in a compact form, which takes a tenth to two thirds of the bytes (docs/decisions/0044-compact-moments.md) and adds an "
        "error to the certificate",
    )
    peer_seconds: float = Field(
        default=60,
        ge=2,
        le=3600,
        description="timeout of collectives and health checks; a rank that exceeds it counts as hung, and "
        "all ranks are replaced",
    )


@dataclass(frozen=True)
class Timeouts:
    """Timeouts that end a hang, in seconds.

    `peer`: how long ranks wait for each other in a collective, and Ray Train for the health check of a
    rank. Whichever expires first restarts the group. It must be longer than what one rank may do while
    the others wait, such as retrying a store that comes back after half a minute.
    """

    peer: float

    @property
    def ray_train_environment(self) -> dict[str, str]:
        """Environment variables for the process that starts a run; Ray Train passes them on."""
        return {
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{self.peer:g}",
            # Time until a death is noticed. The default of two seconds would add to every restart.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            # An elastic group requests as many ranks as were possible up to 20 s ago. When a node is gone,
            # this is how long it waits before it requests fewer. Resources that exist are granted
            # within a second.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        }

    def apply_to_ray_train(self) -> None:
        """Set the variables that the environment does not define."""
        for name, value in self.ray_train_environment.items():
            os.environ.setdefault(name, value)


def current_timeouts() -> Timeouts:
    """Timeouts from the settings. Raises ValidationError for values out of range."""
    return Timeouts(TrainSettings().peer_seconds)
