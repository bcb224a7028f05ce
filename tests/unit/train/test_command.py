"""`python -m workers.train`: what can be asked for, and what cannot."""

import pytest

from workers.train.__main__ import parse

NEEDED = ["--store", "file:///store", "--job", "job-1", "--attempt", "1"]


def test_group_keeps_its_size_unless_it_may_shrink() -> None:
    assert parse([*NEEDED, "--ranks", "4"]).min_ranks == 4
    assert parse([*NEEDED, "--ranks", "4", "--min-ranks", "2"]).min_ranks == 2


def test_priority_is_normal_by_default() -> None:
    assert parse(NEEDED).priority == "normal"
    assert parse([*NEEDED, "--priority", "high"]).priority == "high"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "0"], "--ranks is 0; it must be 1 or more"),
        (["--min-ranks", "0"], "--min-ranks is 0; it must be from 1 to --ranks, which is 1"),
        (["--ranks", "2", "--min-ranks", "3"], "--min-ranks is 3; it must be from 1 to --ranks"),
        (["--gpus-per-rank", "-1"], "--gpus-per-rank is -1; it must be 0 or more"),
        (["--idle-seconds", "-1"], "--idle-seconds is -1; it must be 0 or more"),
        (["--idle-seconds", "nan"], "--idle-seconds is nan; it must be 0 or more"),
        (["--priority", "highest"], "invalid choice: 'highest'"),
    ],
)
def test_impossible_values_are_rejected_with_a_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*NEEDED, *words])
    assert message in capsys.readouterr().err
