"""The timeout between ranks: one number, for torch and for Ray Train."""

import os

import pytest
from pydantic import ValidationError

from workers.train.settings import Timeouts, current_timeouts


def test_the_timeout_is_a_minute_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMCL_PEER_SECONDS", raising=False)
    assert current_timeouts() == Timeouts(60.0)
    monkeypatch.setenv("CMCL_PEER_SECONDS", "7.5")
    assert current_timeouts() == Timeouts(7.5)


@pytest.mark.parametrize("seconds", ["", "soon", "nan", "0", "-3", "86400"])
def test_what_is_no_time_to_wait_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("CMCL_PEER_SECONDS", seconds)
    with pytest.raises(ValidationError, match="peer_seconds"):
        current_timeouts()


def test_ray_train_variables_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Timeouts(7.0).ray_train_environment
    for name in names:
        monkeypatch.setenv(name, "set first so that it is put back")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    Timeouts(7.0).apply_to_ray_train()
    variables = {name: os.environ[name] for name in names}
    assert variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.1"
    assert variables["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] == "7"
