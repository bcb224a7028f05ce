"""Quotas and semaphores that owners share."""

import asyncio
from itertools import repeat

import pytest

from cmcl.fairness import FairSemaphore, OverLimit, Quota


def take_all(quota: Quota, owner: str, amount: int = 1) -> int:
    """Take as much as the quota gives, in pieces of `amount`; return the sum."""
    taken = 0
    for each in repeat(amount, 10_000):
        try:
            quota.take(owner, each)
        except OverLimit:
            break
        taken += each
    return taken


def test_what_was_held_is_released_when_the_work_fails() -> None:
    quota = Quota(10, "rows")
    with pytest.raises(ZeroDivisionError), quota.held("a", 8):
        raise ZeroDivisionError
    assert quota.total == 0
    with quota.held("a", 8):
        assert quota.total == 8


def test_one_owner_alone_may_use_four_fifths() -> None:
    quota = Quota(1000, "rows")
    assert take_all(quota, "a") == 800 == quota.share_of_one
    with pytest.raises(OverLimit, match="you hold 800 rows, and 1 more would be over your share"):
        quota.take("a", 1)


@pytest.mark.parametrize("hostile", [1, 2, 3, 8])
def test_owners_that_take_all_they_can_leave_room_for_another(hostile: int) -> None:
    """Even if none of them releases anything."""
    quota = Quota(100_000_000, "bytes")
    for number in range(hostile):
        assert take_all(quota, f"hostile-{number}", 50_000) > 0 or number > 3
    with quota.held("modest", 100):
        assert quota.total <= 100_000_000


def test_owners_that_hold_as_much_as_they_may_hold_the_same_in_the_end() -> None:
    quota = Quota(1000, "rows")
    held = {"a": take_all(quota, "a"), "b": take_all(quota, "b")}
    for _ in range(2000):
        for owner in held:
            quota.release(owner, 1)
            held[owner] += take_all(quota, owner) - 1
    assert abs(held["a"] - held["b"]) < 10
    assert sum(held.values()) < 900


def test_an_owner_that_holds_nothing_gets_the_last_one() -> None:
    quota = Quota(4, "exports")
    assert take_all(quota, "greedy") == 3
    quota.take("modest", 1)
    with pytest.raises(OverLimit, match="exceed the limit of 4"):
        quota.take("third", 1)


def test_while_nothing_is_held_any_amount_is_taken_that_fits() -> None:
    quota = Quota(12, "items")
    with pytest.raises(OverLimit, match="exceed the limit of 12"):
        quota.take("a", 13)
    with quota.held("a", 12):
        pass
    quota.take("b", 1)
    with pytest.raises(OverLimit, match="over your share, which is 8"):
        quota.take("a", 11)


def in_order(
    semaphore: FairSemaphore, asked: list[tuple[str, int]], held: tuple[str, int]
) -> list[tuple[str, int]]:
    """Ask in this order while `held` is held; return the order in which they are granted, each released at once."""
    granted: list[tuple[str, int]] = []

    async def ask(owner: str, amount: int) -> None:
        async with semaphore.held(owner, amount):
            granted.append((owner, amount))

    async def main() -> None:
        release = await semaphore.acquire(*held)
        tasks = [asyncio.create_task(ask(*each)) for each in asked]
        await asyncio.sleep(0)
        assert not granted
        release()
        release()  # Counts once.
        await asyncio.gather(*tasks)

    asyncio.run(main())
    return granted


def test_owners_that_wait_are_served_in_turns_and_in_order_within_an_owner() -> None:
    asked = [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5)]
    granted = in_order(FairSemaphore(5), asked, ("x", 5))
    assert granted == [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("a", 3)]


def test_a_large_amount_is_not_passed_by_small_ones_of_others() -> None:
    async def main() -> None:
        semaphore = FairSemaphore(4)
        release = await semaphore.acquire("a", 2)
        large = asyncio.create_task(semaphore.acquire("b", 4))
        await asyncio.sleep(0)
        small = asyncio.create_task(semaphore.acquire("c", 1))
        await asyncio.sleep(0)
        assert not small.done()
        release()
        (await large)()
        await small

    asyncio.run(main())


def test_an_owner_at_its_limit_does_not_delay_others() -> None:
    async def main() -> None:
        semaphore = FairSemaphore(4, of_owner=1)
        await semaphore.acquire("a")
        waiting = asyncio.create_task(semaphore.acquire("a"))
        await asyncio.sleep(0)
        await semaphore.acquire("b")
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(main())


def test_more_than_may_wait_of_an_owner_are_rejected() -> None:
    async def main() -> None:
        semaphore = FairSemaphore(1, waiting_of_owner=1)
        release = await semaphore.acquire("a")
        waiting = asyncio.create_task(semaphore.acquire("a"))
        await asyncio.sleep(0)
        with pytest.raises(
            OverLimit, match="1 requests of the owner are being processed and 1 wait"
        ):
            await semaphore.acquire("a")
        release()
        await waiting

    asyncio.run(main())


@pytest.mark.parametrize("is_granted", [False, True])
def test_a_cancelled_wait_leaves_what_it_waited_for_to_others(is_granted: bool) -> None:
    """Also where it was granted in the same turn of the loop, and where it kept smaller ones waiting."""

    async def main() -> None:
        semaphore = FairSemaphore(2)
        release = await semaphore.acquire("a", 1)
        large = asyncio.create_task(semaphore.acquire("b", 2))
        await asyncio.sleep(0)
        small = asyncio.create_task(semaphore.acquire("c", 1))
        await asyncio.sleep(0)
        if is_granted:
            release()
        large.cancel()
        await small
        if is_granted:
            await semaphore.acquire("d", 1)

    asyncio.run(asyncio.wait_for(main(), 5))
