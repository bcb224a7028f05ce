"""A hundred and fifty swaps leave no memory behind.

A leaked version would cost a MiB a swap. benchmarks/serving_swaps.py --minutes does the same with
replicas under Ray.
"""

import asyncio
import gc
from collections import Counter
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import httpx
import psutil
import torch

from cmcl.contract.model import ModelSpec
from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.versions import random_heads, store_version
from tests.unit.serve.conftest import MODEL, Replica
from workers.serve.settings import ServeSettings

WIDTH = 256
SPEC = ModelSpec(width=WIDTH, modalities={"image": WIDTH, "text": WIDTH})
# More than what stays in memory, so that each is read, verified and let go of again and again.
VERSIONS = 6
SETTLED, SWAPS = 50, 150
# Measured: 0.5 MiB for the calls that the fakes keep, and now and then 2 MiB that malloc takes. A
# version that stayed would cost half a MiB at every swap.
MOST_MIB = 8
# Objects left by 100 swaps, of which there are about 20; a permanent allocation per request or poll would leave a hundred.
MOST_OBJECTS = 50


def held() -> tuple[float, Counter[str]]:
    """Resident memory in MiB, and all objects of the garbage collector, by type."""
    gc.collect()
    kinds = Counter(type(each).__name__ for each in gc.get_objects())
    return psutil.Process().memory_info().rss / 2**20, kinds


async def swap_and_ask(replica: Replica, swaps: int, generation: int) -> None:
    """Every version answers at least one request of eight rows."""
    rows = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0)).tolist()
    body = {"model": MODEL, "modality": "image", "input": rows, "encoding_format": "base64"}
    transport = httpx.ASGITransport(replica.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for number, version in enumerate(islice(cycle(range(1, VERSIONS + 1)), swaps), generation):
            replica.point(number, version)
            replica.poll()
            response = await client.post("/v1/embeddings", json=body)
            assert (response.status_code, response.headers["x-model-version"]) == (
                200,
                str(version),
            )


def swap_many(folder: Path) -> None:
    """Swap many versions. Raises AssertionError if memory grows."""
    store = FlakyStore(LocalStore(folder))
    replica = Replica(store, ServeSettings(store=store.uri, recent_versions=2))
    for version in range(1, VERSIONS + 1):
        store_version(store, MODEL, version, SPEC, random_heads(SPEC, version))
    asyncio.run(swap_and_ask(replica, SETTLED, generation=1))
    held()  # The first call leaves about a hundred objects of its own in caches of isinstance.
    before_mib, before = held()
    asyncio.run(swap_and_ask(replica, SWAPS - SETTLED, generation=SETTLED + 1))
    after_mib, after = held()
    assert (after - before).total() < MOST_OBJECTS, (after - before).most_common(10)
    assert after["ServedVersion"] == before["ServedVersion"]
    assert after_mib - before_mib < MOST_MIB, f"{after_mib - before_mib:.1f} MiB more"


def test_memory_is_flat_after_the_fiftieth_swap(tmp_path: Path) -> None:
    """In its own process: threads that other tests left running would allocate too."""
    swapping = get_context("spawn").Process(target=swap_many, args=(tmp_path / "store",))
    swapping.start()
    swapping.join()
    assert swapping.exitcode == 0, "its traceback stands in the captured stderr"
