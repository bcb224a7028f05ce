"""Figures of the serving benchmarks from answers, swaps and memory."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.endpoint.load import ANSWER, CUT, RIGHT, TOO_LATE, WRONG, Answers
from benchmarks.peers.comparison import Cell
from benchmarks.serving import goals
from benchmarks.serving_swaps import Run, _document, _parser
from benchmarks.swaps import figures
from benchmarks.swaps.figures import Swap
from benchmarks.swaps.memory import Memory, slope
from benchmarks.swaps.mover import Move

CELL = Cell("ours", "binary", 256, 16, 10, 10.0, 20.0, 40.0, 10240.0, 0, 0)


def answer(
    sent: float, seconds: float, status: int = 200, checked: int = RIGHT, version: int = 1
) -> tuple[float, ...]:
    return (sent, seconds, status, version, 0, checked, 10)


def answers(*found: tuple[float, ...]) -> Answers:
    return np.array(list(found), dtype=ANSWER)


def move(at: float, version: int) -> Move:
    return Move(version, False, at, 0.01)


def swap(at: float, everywhere: float | None) -> Swap:
    return Swap(move(at, 2), everywhere, next_at=at + 1)


def test_a_swap_is_over_when_the_last_answer_by_another_version_has_come() -> None:
    found = answers(
        answer(0.9, 0.4),  # Sent before the move: it says nothing.
        answer(1.1, 0.1, version=2),
        answer(1.15, 0.2),
        answer(1.2, 0.3, version=2),
        answer(2.1, 0.1, version=2),  # The next move was not followed.
        answer(3.1, 0.125, version=4),
    )
    moves = [move(1.0, 2), move(2.0, 3), move(3.0, 4)]
    swaps = figures.followed(moves, found, end=4.0)
    assert [each.everywhere for each in swaps] == pytest.approx([0.35, None, 0.225])
    assert [each.move for each in swaps] == moves


def test_a_version_that_answers_before_an_older_one_does_is_not_everywhere() -> None:
    found = answers(answer(1.1, 0.1, version=2), answer(1.2, 0.1))
    assert figures.followed([move(1.0, 2)], found, end=2.0)[0].everywhere is None


def test_an_answer_that_the_next_move_has_brought_about_is_no_older_one() -> None:
    """Sent before that promotion and answered after it, by the version of before."""
    found = answers(
        answer(1.1, 0.1), answer(1.2, 0.1, version=2), answer(1.95, 0.1), answer(2.1, 0.1)
    )
    swaps = figures.followed([move(1.0, 2), move(2.0, 1)], found, end=3.0)
    assert swaps[0].everywhere == pytest.approx(0.2)


def test_times_of_swaps_include_the_number_that_never_ended() -> None:
    assert figures.swap_times([swap(1, 0.2), swap(2, None)]) == {
        "p50": pytest.approx(200),
        "p95": pytest.approx(200),
        "most": pytest.approx(200),
        "never": 1,
    }


def test_requests_in_a_swap_are_those_under_way_while_versions_differ() -> None:
    found = answers(answer(0.0, 0.5), answer(0.9, 0.2), answer(1.1, 0.1), answer(1.5, 0.1))
    during = figures.during(found, [swap(1.0, 0.2)])
    assert during["sent"].tolist() == [0.9, 1.1]


def test_every_answer_counts_and_every_swap_that_none_saw_everywhere() -> None:
    """Also failures before the measured seconds, and hung requests."""
    found = answers(
        *[answer(at / 10, 0.01) for at in range(90)],
        answer(0.05, 0.1, CUT, version=-1),
        answer(2.0, 0.1, checked=WRONG, version=2),
        answer(4.1, 10.0, TOO_LATE, version=-1),
    )
    run = Run(found, [[move(4.0, 2)], [move(5.0, 1)]], Memory([]), begin=1.0, end=8.0)
    document = _document(_parser().parse_args([]), run)
    goals = {goal["what"]: goal["measured"] for goal in document["goals"]}
    assert document["failed"] == {"cut": 1, "too late": 1}
    assert goals["failed requests"] == 2
    assert goals["answers not of their version"] == 1
    assert goals["swaps never seen everywhere"] == 1


def test_rounds_are_compared_with_the_seconds_around_them() -> None:
    found = answers(*[answer(at, 0.1) for at in (0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5)])
    steady, swapping = figures.parted(found, [(2.0, 3.0), (4.0, 5.0)], begin=1.0, end=6.0)
    assert [part["sent"].tolist() for part in steady] == [[1.5], [3.5], [5.5]]
    assert [part["sent"].tolist() for part in swapping] == [[2.5], [4.5]]


def test_growing_memory_is_distinguished_from_noise() -> None:
    swaps = np.arange(200.0)
    wavering = 500 + np.random.default_rng(0).normal(0, 1, 200)
    flat, growing = (
        slope(swaps.tolist(), wavering.tolist()),
        slope(swaps.tolist(), (wavering + 0.1 * swaps).tolist()),
    )
    assert flat is not None
    assert growing is not None
    assert not flat.grows
    assert growing.grows
    assert growing.value == pytest.approx(10, abs=2)
    assert slope(swaps[:10].tolist(), wavering[:10].tolist()) is None


def test_goals_name_the_cell_that_is_furthest_from_them() -> None:
    cells = [
        CELL,
        replace(CELL, server="bare", p50=8.0),
        replace(CELL, form="json", requests_per_second=30.0),
        replace(CELL, form="json", server="bare", p50=20.0),
        replace(CELL, form="json", server="infinity", requests_per_second=20.0),
    ]
    rate, p50, share = goals(cells, {256: 16000.0})
    assert (rate["worst"], p50["worst"], share["worst"]) == (1.5, 1.25, 0.64)
    assert p50["where"] == "binary, 256 row(s), 16 client(s)"
