"""Measured memory of a replica: collections stay within the setting."""

import json
import multiprocessing
import resource
from pathlib import Path

import pytest

from cmcl.storage.local import LocalStore
from tests.fakes.flaky_store import FlakyStore
from tests.unit.serve.collections.scene import EVERYONE, Scene, create, entries
from workers.serve.collections import writes
from workers.serve.collections.index import GRAPH_FROM_ROWS
from workers.serve.collections.quota import AllFull, CollectionsQuota, RowsUncounted
from workers.serve.collections.segments import rows_bytes
from workers.serve.settings import CollectionLimits

MEBIBYTE = 1 << 20
LIMIT = 160 * MEBIBYTE
AT_ONCE = 1024
# Temporary memory of reading and merging, and what allocators keep of it: not counted, but bounded for
# any limit.
BESIDE = 192 * MEBIBYTE
PAYLOADS = {
    # The most values that 4 KiB can have: each takes six times as much in a table.
    "a list": json.dumps({"shade": [1] * 2000}, separators=(",", ":")),
    "fields": json.dumps({f"{n:03}": n % 7 for n in range(400)}, separators=(",", ":")),
}


def most_used() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fill(folder: Path, payload: str) -> tuple[int, int]:
    """Add rows until they are refused, and swap the version twice.

    Return the counted bytes, and the growth of the process.
    """
    scene = Scene(FlakyStore(LocalStore(folder)), GRAPH_FROM_ROWS)
    width = scene.swap(1).spec.width
    quota = CollectionsQuota(
        CollectionLimits(1, 10_000_000, 10_000_000, LIMIT), scene.follower.snapshots
    )
    # Before what is measured: imports, and pools of memory.
    (row,) = entries(0, 1, payload=payload)
    target = writes.write(scene.store, create(scene.store), [row], EVERYONE)
    scene.settle()
    before = most_used()
    first = 0
    while True:
        new = [row._replace(id=f"{number}") for number in range(first, first + AT_ONCE)]
        size = rows_bytes(width, [each.id for each in new], [each.payload for each in new])
        try:
            with quota.writing(target, AT_ONCE, size) as done:
                target = writes.write(scene.store, target, new, EVERYONE)
                done(target)
        except RowsUncounted:
            scene.settle()
            continue
        except AllFull:
            break
        first += AT_ONCE
    scene.settle()
    for number in (2, 3):
        scene.swap(number)
        scene.settle()
    return quota.bytes(), most_used() - before


@pytest.mark.parametrize("payload", PAYLOADS)
def test_memory_stays_under_the_limit_while_an_owner_fills_it(tmp_path: Path, payload: str) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        counted, taken = pool.apply(fill, (tmp_path, PAYLOADS[payload]))
    assert 0.5 * LIMIT < counted <= LIMIT
    assert taken < LIMIT + BESIDE, f"{taken / MEBIBYTE:.0f} MiB"
