"""Whose files are read next: a place at a time for each owner, and nobody is forgotten."""

from service.datasets.validations import Turn, Turns


def turns(*owners: str) -> Turns:
    """Three places, and one dataset for each of these, in their order."""
    made = Turns(3)
    for number, owner in enumerate(owners):
        made.wait(Turn(f"ds-{number}", 1, owner))
    return made


def taken(made: Turns) -> list[Turn]:
    """Whoever may begin now."""
    found = []
    while (turn := made.take()) is not None:
        found.append(turn)
    return found


def owners(found: list[Turn]) -> list[str]:
    return [turn.owner for turn in found]


def test_one_owner_leaves_a_place_for_somebody_else() -> None:
    made = turns("a", "a", "a", "a")
    assert owners(taken(made)) == ["a", "a"]
    made.wait(Turn("ds-9", 1, "b"))
    assert owners(taken(made)) == ["b"]


def test_owners_come_before_an_owners_second_dataset() -> None:
    made = turns("a", "a", "a", "b", "c")
    assert owners(taken(made)) == ["a", "b", "c"]


def test_a_place_that_is_given_back_goes_to_who_has_none() -> None:
    made = turns("a", "a", "a", "b", "b", "c")
    begun = taken(made)
    assert owners(begun) == ["a", "b", "c"]
    made.give_back(begun[1])
    assert owners(taken(made)) == ["b"]
    made.wait(Turn("ds-9", 1, "d"))
    made.give_back(begun[2])
    assert owners(taken(made)) == ["d"]


def test_everybody_comes_in_the_end_and_in_order() -> None:
    made = turns(*"aaaa")
    order = []
    for _ in range(4):
        order += taken(made)
        made.give_back(order[-1])
    assert [turn.dataset for turn in order] == ["ds-0", "ds-1", "ds-2", "ds-3"]
    assert made.take() is None


def test_who_left_is_not_called() -> None:
    made = turns("a", "b")
    made.leave(Turn("ds-0", 1, "a"))
    assert owners(taken(made)) == ["b"]
