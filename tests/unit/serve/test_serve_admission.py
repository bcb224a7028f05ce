"""What a replica takes on: bounded, and shared between those who ask."""

import pytest

from tests.unit.serve.conftest import Clock
from workers.serve.errors import Overloaded
from workers.serve.http.admission import Budget


def test_what_was_held_is_given_back_when_the_work_fails() -> None:
    budget = Budget(10, "rows")
    with pytest.raises(ZeroDivisionError), budget.held("a", 10):
        raise ZeroDivisionError
    with budget.held("a", 10), pytest.raises(Overloaded, match="over the limit of 10"):
        budget.held("a", 1).__enter__()
    assert budget.total == 0


def test_one_key_alone_may_have_everything() -> None:
    budget = Budget(10, "rows")
    with budget.held("a", 6), budget.held("a", 4):
        assert budget.total == 10


def test_a_key_that_sends_without_end_leaves_others_their_share() -> None:
    clock = Clock()
    budget = Budget(10, "rows", clock)
    greedy = [budget.held("greedy", 1) for _ in range(10)]
    for each in greedy:
        each.__enter__()
    with pytest.raises(Overloaded, match="over the limit"):
        budget.held("modest", 1).__enter__()
    greedy.pop().__exit__(None, None, None)
    with pytest.raises(Overloaded, match="more than its share of 5"):
        budget.held("greedy", 1).__enter__()
    with budget.held("modest", 1):
        assert budget.total == 10


def test_one_key_never_holds_what_a_newcomer_needs() -> None:
    clock = Clock()
    budget = Budget(12, "requests", clock, keeps_room=True)
    for _ in range(6):
        budget.take("greedy", 1)
    with pytest.raises(Overloaded, match="more than its share of 6"):
        budget.take("greedy", 1)
    clock.now = 2.0
    for _ in range(4):
        budget.take("second", 1)
    with pytest.raises(Overloaded, match="share of 4"):
        budget.take("second", 1)
    with budget.held("third", 1):
        assert budget.total == 11


def test_a_newcomer_may_have_whatever_fits() -> None:
    """So that the largest body that is permitted can be admitted at all."""
    budget = Budget(12, "bytes", keeps_room=True)
    with budget.held("a", 12):
        pass
    budget.take("b", 1)
    with pytest.raises(Overloaded, match="share of 4"):
        budget.take("b", 11)


def test_where_nobody_has_a_key_no_room_is_kept() -> None:
    budget = Budget(12, "requests", keeps_room=True)
    for _ in range(12):
        budget.take("", 1)
    with pytest.raises(Overloaded, match="over the limit of 12"):
        budget.take("", 1)


def test_a_key_that_asks_no_more_gives_up_its_share() -> None:
    clock = Clock()
    budget = Budget(10, "rows", clock)
    with budget.held("a", 6):
        with budget.held("b", 4):
            pass
        clock.now = 2.0
        with budget.held("a", 4):
            assert budget.total == 10
