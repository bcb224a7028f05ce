"""The queue of an encoder under schedules that seeds decide, in virtual time.

In any order, with requests that leave early and bad items: each request gets the features of its own items, or an error of
its own or of the pass that it shared, and none waits without end. CMCL_FAULT_SCHEDULES=100000 runs more schedules.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from tests.fakes.encoders import LENGTHS
from tests.faults.virtual_threads import VirtualLoop, VirtualThreads
from tests.faults.virtual_time import VirtualTime
from workers.encoders.identity import identity_of
from workers.encoders.media import Decoded
from workers.encoders.parts import Part
from workers.encoders.port import FrozenEncoder
from workers.serve.encoders.port import Raw, UnreadableItem
from workers.serve.encoders.queue import EncoderQueue
from workers.serve.versions.loading import Float32Array

_SCHEDULES = int(os.environ.get("CMCL_FAULT_SCHEDULES", "1000"))
_REQUESTS, _ENDS_SECONDS = 12, 600.0
# What a thousand schedules contain of each; without, the invariants would hold of nothing.
_CONTAINS = {"answer", "parts", "left", "unreadable", "failed pass", "failed queue", "shared pass"}


class Panic(BaseException):
    """As a library in Rust raises it."""


class ChanceEncoder(FrozenEncoder[int]):
    """The feature of a number is the number. Passes take time, and now and then fail."""

    def __init__(self, spec: EncoderSpec, threads: VirtualThreads, chance: random.Random) -> None:
        super().__init__(spec)
        self._threads, self._chance = threads, chance
        self.passes: list[list[int]] = []

    def identity(self) -> EncoderIdentity:
        return identity_of(self.spec, adapter=1, files=None, settings={}, packages=())

    def load(self, decoded: Decoded) -> int:
        raise NotImplementedError

    def features(self, items: Sequence[int]) -> Float32Array:
        self.passes.append([*items])
        self._threads.sleep(self._chance.choice([0.0, 0.001, 0.02, 1.0]))
        if self._chance.random() < 0.1:
            raise self._chance.choice([RuntimeError("out of memory"), Panic("index out of bounds")])
        return np.array([[item, item] for item in items], np.float32)


class Schedule:
    """One schedule of requests. `tally`: what happened; `wrong`: what must not."""

    def __init__(self, seed: int, tally: Counter[str]) -> None:
        self._chance = random.Random(seed)
        self._time = VirtualTime(self._chance)
        self._threads = VirtualThreads(self._time, self._chance)
        self._loop = VirtualLoop(self._threads)
        self._tally = tally
        self.wrong: list[str] = []
        spec = LENGTHS.model_copy(
            update={
                "takes": self._chance.choice(["text", "image"]),
                "batch_wait_seconds": self._chance.choice([0.0, 0.01]),
            }
        )
        self._encoder = ChanceEncoder(spec, self._threads, self._chance)
        self._queue = EncoderQueue(
            self._encoder, self._read, spec, self._watch, threads=self._threads
        )

    def run(self) -> None:
        ended = self._threads.start("loop", lambda: self._loop.run_until_complete(self._main()))
        self._time.run(_ENDS_SECONDS)
        if not ended.has_ended:
            self.wrong.append("a request waits without end")
        self.wrong += self._loop.failures
        sizes = [len(each) for each in self._encoder.passes]
        if max(sizes, default=0) > LENGTHS.max_batch:
            self.wrong.append(f"a pass of {max(sizes)} items")
        self._tally["shared pass"] += any(
            len({item // 100 for item in each}) > 1 for each in self._encoder.passes
        )
        self._time.close()
        self._loop.close()

    async def _main(self) -> None:
        await asyncio.gather(*(self._ask(number) for number in range(_REQUESTS)))

    async def _ask(self, number: int) -> None:
        chance = self._chance
        await asyncio.sleep(chance.choice([0.0, 0.0, 0.001, 0.03]))
        items = [100 * number + at for at in range(chance.randint(1, LENGTHS.max_batch))]
        if is_bad := chance.random() < 0.1:
            items[-1] = -1
        as_parts = chance.random() < 0.2
        asked = self._parts(items) if as_parts else self._queue.encode([*map(str, items)])
        leaves_after = chance.choice([None, None, None, 0.0, 0.001, 0.5])
        try:
            async with asyncio.timeout(leaves_after):
                found = await asked
        except TimeoutError:
            self._tally["left"] += 1
        except RuntimeError as error:
            known = {"out of memory": "pass", "it failed": "pass", "no metrics": "queue"}
            kind = next((each for text, each in known.items() if str(error).startswith(text)), "?")
            self._tally[f"failed {kind}"] += 1
            if kind == "?":
                self.wrong.append(f"request {number}: {error!r}")
        else:
            # Parts are of one file, the first.
            bad = 0 if as_parts else len(items) - 1
            if isinstance(found, UnreadableItem) and is_bad and found.index == bad:
                self._tally["unreadable"] += 1
            elif isinstance(found, np.ndarray) and found[:, 0].tolist() == items:
                self._tally["parts" if as_parts else "answer"] += 1
            else:
                self.wrong.append(f"request {number} of {items} got {found!r}")

    async def _parts(self, items: list[int]) -> Float32Array | object:
        def read(_: bytes) -> list[Part[int]]:
            return [Part(self._read(str(item)), float(item)) for item in items]

        found = await self._queue.encode_parts(b"", read)
        return np.stack([part.of for part in found]) if isinstance(found, list) else found

    def _read(self, raw: Raw) -> int:
        if raw == "-1":
            raise ValueError("it is bad")
        self._threads.give_way()
        return int(str(raw))

    def _watch(self, _: float) -> None:
        if self._chance.random() < 0.02:
            raise RuntimeError("no metrics")


def test_each_request_gets_its_own_features_or_an_error_in_time() -> None:
    tally, broken = Counter[str](), []
    for seed in range(_SCHEDULES):
        schedule = Schedule(seed, tally)
        schedule.run()
        broken += [(seed, what) for what in schedule.wrong]
    if broken:
        pytest.fail(f"{len(broken)} violations, the first with seed {broken[0][0]}: {broken[0][1]}")
    assert {name for name, count in tally.items() if count} >= _CONTAINS
