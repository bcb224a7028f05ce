"""`python -m workers.train`: valid and invalid arguments, and the timeout between ranks from the environment."""

import os

import pytest
from pydantic import ValidationError

from workers.train.__main__ import parse
from workers.train.ranks import set_ray_train_variables
from workers.train.settings import Ranks, TrainSettings

NEEDED = ["--store", "file:///store", "--job", "job-1", "--attempt", "1"]


def test_group_keeps_its_size_unless_it_may_shrink() -> None:
    assert parse([*NEEDED, "--ranks", "4"]).ranks == Ranks(4, 4)
    assert parse([*NEEDED, "--ranks", "4", "--min-ranks", "2"]).ranks == Ranks(4, 2)


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


@pytest.mark.parametrize("seconds", ["", "soon", "nan", "0", "-3", "86400"])
def test_what_is_no_time_to_wait_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("CMCL_PEER_SECONDS", seconds)
    with pytest.raises(ValidationError, match="peer_seconds"):
        TrainSettings()


def test_ray_train_variables_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, other = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
    monkeypatch.setattr(os, "environ", {kept: "0.1"})
    set_ray_train_variables(7.5)
    assert (os.environ[kept], os.environ[other]) == ("0.1", "7.5")
