"""The actor without Ray: everybody who waits hears of an announcement, and a flood is a few beats."""

import asyncio

import pytest

from workers.serve.announcements import Broadcaster, Debouncer

LISTENERS = 50


def test_everybody_who_waits_is_told_at_once() -> None:
    async def inside() -> list[int]:
        broadcaster = Broadcaster(wait_seconds=3600)
        seen = await broadcaster.wait(-1)
        waiting = [asyncio.create_task(broadcaster.wait(seen)) for _ in range(LISTENERS)]
        await asyncio.sleep(0)
        broadcaster.announce()
        async with asyncio.timeout(60):
            return await asyncio.gather(*waiting)

    assert asyncio.run(inside()) == [1] * LISTENERS


def test_who_comes_later_hears_of_what_was_missed() -> None:
    async def inside() -> list[int]:
        broadcaster = Broadcaster(wait_seconds=0.01)
        broadcaster.announce()
        return [await broadcaster.wait(0), await broadcaster.wait(1), await broadcaster.wait(57)]

    assert asyncio.run(inside()) == [1, 1, 1]


def test_without_news_a_call_ends_with_the_same_number() -> None:
    async def inside() -> int:
        return await Broadcaster(wait_seconds=0.01).wait(0)

    assert asyncio.run(inside()) == 0


@pytest.mark.parametrize(("hits", "beats"), [(1, 1), (2, 2), (1000, 2)])
def test_a_flood_beats_once_now_and_once_later(hits: int, beats: int) -> None:
    async def inside() -> tuple[int, int]:
        beaten: list[None] = []
        debouncer = Debouncer(lambda: beaten.append(None), seconds=0.05)
        for _ in range(hits):
            debouncer.call()
        at_once = len(beaten)
        await asyncio.sleep(0.3)
        return at_once, len(beaten)

    assert asyncio.run(inside()) == (1, beats)


def test_after_a_rest_a_hit_beats_at_once_again() -> None:
    async def inside() -> list[int]:
        beaten: list[int] = []
        debouncer = Debouncer(lambda: beaten.append(1), seconds=0.01)
        counts = []
        for _ in range(3):
            debouncer.call()
            counts.append(len(beaten))
            await asyncio.sleep(0.1)
        return counts

    assert asyncio.run(inside()) == [1, 2, 3]
