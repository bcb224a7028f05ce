"""`python -m workers.train`: valid and invalid arguments, and the timeout between ranks from the environment."""

import os

import pytest
from pydantic import ValidationError

from workers.train.__main__ import parse
from workers.train.ray_run import Timeouts, current_timeouts

NEEDED = ["--store", "file:///store", "--job", "job-1", "--attempt", "1"]


def test_group_keeps_its_size_unless_it_may_shrink() -> None:
    assert parse([*NEEDED, "--ranks", "4"]).min_ranks == 4
    assert parse([*NEEDED, "--ranks", "4", "--min-ranks", "2"]).min_ranks == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "0"], "--ranks is 0; it must be 1 or more"),
        (["--min-ranks", "0"], "--min-ranks is 0; it must be from 1 to --ranks, which is 1"),
        (["--ranks", "2", "--min-ranks", "3"], "--min-ranks is 3; it must be from 1 to --ranks"),
        (["--gpus-per-rank", "-1"], "--gpus-per-rank is -1; it must be 0 or more"),
        (["--gpus-per-rank", "nan"], "--gpus-per-rank is nan; it must be 0 or more"),
    ],
)
def test_impossible_values_are_rejected_with_a_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*NEEDED, *words])
    assert message in capsys.readouterr().err


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
