"""Fairness between owners, with the product's scheduler and SQLite in virtual time."""

from benchmarks.fairness import fairness, main
from tests.unit.benchmarks.command import answer_of


def test_ten_thousand_datasets_of_one_owner_at_most_double_the_wait_of_another() -> None:
    for row in fairness(queued=10_000, datasets=10, seeds=1):
        assert row["ratio"] <= 2, row
        if row["models"] == 1:
            assert row["passed_by_most"] <= 1, "delayed by at most one job"


def test_the_command_prints_json() -> None:
    answer = answer_of(main, "--queued", "20", "--datasets", "2", "--seeds", "1", "--json")
    cases = answer.document["cases"]
    assert [case["attempts_at_once"] for case in cases] == [1, 4]
    assert all(case["alone_p50_s"] > 0 for case in cases)
