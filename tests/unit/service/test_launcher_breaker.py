"""A cluster that hangs costs its callers one wait in a while; one that answers is never passed over."""

import pytest

from service.launchers.circuit_breaker import CircuitBreaker
from service.launchers.port import LauncherUnavailable, LaunchState, Submission
from tests.fakes.launcher import FakeLauncher


class _Hanging(FakeLauncher):
    """Each call takes some seconds of a clock that the test reads."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.takes = 30.0
        self.asked = 0

    def _answer(self) -> None:
        self.asked += 1
        self.now += self.takes
        super()._answer()


@pytest.fixture
def hanging() -> _Hanging:
    return _Hanging()


@pytest.fixture
def breaker(hanging: _Hanging) -> CircuitBreaker:
    return CircuitBreaker(hanging, lambda: hanging.now)


def test_of_many_calls_one_waits_for_a_cluster_that_hangs(
    hanging: _Hanging, breaker: CircuitBreaker
) -> None:
    hanging.is_down = True
    for call in range(100):
        with pytest.raises(LauncherUnavailable, match="nobody answers"):
            breaker.status(f"job-{call}-a1")
    assert hanging.asked == 1
    assert hanging.now == 30


def test_a_cluster_that_hung_is_retried_later(hanging: _Hanging, breaker: CircuitBreaker) -> None:
    hanging.is_down = True
    with pytest.raises(LauncherUnavailable):
        breaker.stop("job-a1")
    hanging.is_down = False
    hanging.now += 16
    breaker.submit(Submission("job-a1", ["true"]))
    assert breaker.status("job-a1").state == LaunchState.RUNNING


def test_a_quick_rejection_does_not_open_the_breaker(
    hanging: _Hanging, breaker: CircuitBreaker
) -> None:
    hanging.is_down, hanging.takes = True, 0.01
    for _ in range(5):
        with pytest.raises(LauncherUnavailable):
            breaker.status("job-a1")
    assert hanging.asked == 5


def test_a_slow_response_does_not_open_the_breaker(
    hanging: _Hanging, breaker: CircuitBreaker
) -> None:
    for _ in range(5):
        assert breaker.status("job-a1").state == LaunchState.UNKNOWN
    assert hanging.asked == 5
