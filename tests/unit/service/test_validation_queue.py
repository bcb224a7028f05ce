"""The queue of validations: fair between owners, in order within one."""

from service.datasets.validations import FairQueue, Ticket


def queue(*owners: str) -> FairQueue:
    """Three slots, and one dataset for each of these owners, in their order."""
    made = FairQueue(3)
    for number, owner in enumerate(owners):
        made.put(Ticket(f"ds-{number}", 1, owner))
    return made


def taken(made: FairQueue) -> list[Ticket]:
    """Every ticket that may start now."""
    found = []
    while (ticket := made.take()) is not None:
        found.append(ticket)
    return found


def owners(found: list[Ticket]) -> list[str]:
    return [ticket.owner for ticket in found]


def test_one_owner_leaves_a_slot_for_another() -> None:
    made = queue("a", "a", "a", "a")
    assert owners(taken(made)) == ["a", "a"]
    made.put(Ticket("ds-9", 1, "b"))
    assert owners(taken(made)) == ["b"]


def test_owners_come_before_an_owners_second_dataset() -> None:
    made = queue("a", "a", "a", "b", "c")
    assert owners(taken(made)) == ["a", "b", "c"]


def test_a_freed_slot_goes_to_an_owner_without_one() -> None:
    made = queue("a", "a", "a", "b", "b", "c")
    begun = taken(made)
    assert owners(begun) == ["a", "b", "c"]
    made.done(begun[1])
    assert owners(taken(made)) == ["b"]
    made.put(Ticket("ds-9", 1, "d"))
    made.done(begun[2])
    assert owners(taken(made)) == ["d"]


def test_every_ticket_is_taken_in_order() -> None:
    made = queue(*"aaaa")
    order = []
    for _ in range(4):
        order += taken(made)
        made.done(order[-1])
    assert [ticket.dataset for ticket in order] == ["ds-0", "ds-1", "ds-2", "ds-3"]
    assert made.take() is None


def test_a_discarded_ticket_is_not_taken() -> None:
    made = queue("a", "b")
    made.discard(Ticket("ds-0", 1, "a"))
    assert owners(taken(made)) == ["b"]
