"""How long ranks and Ray Train wait before they give somebody up: all of it in one place."""

import os
from dataclasses import dataclass

from workers.train.settings import TrainSettings


@dataclass(frozen=True)
class Patience:
    """What is allowed to take how long.

    `peer` ends a hang. Ranks wait this long for one of them in a collective, and Ray Train for the
    answer of a rank's process: whichever notices first, the group is restarted. It must be longer
    than what one rank may do while the others wait for it, such as reading on when a store comes
    back after half a minute.
    """

    peer: float

    @property
    def of_ray_train(self) -> dict[str, str]:
        """Environment of the process that starts a run; Ray Train hands it on to its own."""
        return {
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{self.peer:g}",
            # How soon a death is seen. Two seconds, the default, would be part of every restart.
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            # An elastic group asks for as many ranks as it has heard are possible, and that may be
            # 20 s old: when a node has gone, this is what it waits before it asks for fewer.
            # Where there is room the places are there within a second.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
        }

    def set_for_ray_train(self) -> None:
        """Where the environment says otherwise, it is right."""
        for name, value in self.of_ray_train.items():
            os.environ.setdefault(name, value)


def patience_here() -> Patience:
    """As the settings say. Raises ValidationError for what is no time to wait."""
    return Patience(TrainSettings().peer_seconds)
