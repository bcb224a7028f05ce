"""Which ends of a group are deaths. Ray Train's controller knows why it replaces one; ranks do not."""

from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    RestartingState,
    TrainControllerState,
)
from ray.train.v2.api.exceptions import (
    ControllerError,
    PreemptionError,
    TrainingFailedError,
    WorkerGroupError,
)


class DeathsToldOf(ControllerCallback):
    """Runs in Ray Train's controller; `tell` gets Ray Train's words about each group that died."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Another size of the group is another state, and tells nothing."""
        if isinstance(current_state, RestartingState | ReschedulingState):
            error = current_state.training_failed_error
            if is_death(error):
                self._tell(str(error))


def is_death(error: TrainingFailedError) -> bool:
    """Whether the ranks may be to blame: not for a node that is taken away, nor for lack of room."""
    if isinstance(error, WorkerGroupError):
        return not any(_was_preempted(each) for each in error.worker_failures.values())
    if isinstance(error, ControllerError):
        return not isinstance(error.controller_failure, WorkerGroupStartupTimeoutError)
    return not isinstance(error, PreemptionError)


def _was_preempted(failure: Any) -> bool:
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return isinstance(failure, RayActorError) and failure.preempted
