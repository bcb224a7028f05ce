"""Replicas add up what they embed, and one of them compares the sums of all; no query leaves a replica."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from cmcl.contract.drift import FEWEST_ROWS, DriftReport, QuerySums
from cmcl.contract.errors import StorageUnavailable
from cmcl.contract.modality import ModalityPair
from cmcl.storage import layout
from cmcl.storage.documents import read_document
from tests.fakes.flaky_store import FlakyStore
from tests.fakes.versions import random_rows
from tests.unit.serve.conftest import MODEL, SPEC, Clock, Replica
from workers.serve.drift import WINDOW_SECONDS, QueryWatch, watch_queries
from workers.serve.settings import ServeSettings

PAIR = ModalityPair(first="image", second="text")
KNOWN = random_rows(SPEC, PAIR, 1)["image"].numpy()
# All in one direction.
STRANGE = np.abs(KNOWN) + 1


@pytest.fixture
def clock() -> Clock:
    return Clock(now=10 * WINDOW_SECONDS + 1)


def replica(store: FlakyStore, clock: Clock, name: str) -> Replica:
    made = Replica(store, ServeSettings(store=store.uri), queries=QueryWatch(name, clock))
    made.poll()
    return made


@pytest.fixture
def replicas(store: FlakyStore, clock: Clock) -> tuple[Replica, Replica]:
    first = replica(store, clock, "a")
    first.publish(version=1)
    first.poll()
    return first, replica(store, clock, "b")


def ask(replica: Replica, clock: Clock, rows: np.ndarray, batches: Sequence[int]) -> None:
    """Embed rows in requests of these sizes, in turn, each in a second of its own."""
    start = 0
    while start < len(rows):
        for size in batches:
            part = rows[start : start + size].tolist()
            if part:
                assert replica.embed(input=part).status_code == 200
            start += size
            clock.now += 1
            poll(replica)


def poll(*replicas: Replica) -> None:
    for each in replicas:
        assert each.queries is not None
        each.queries.poll(each.store)


def next_minute(clock: Clock, *replicas: Replica) -> None:
    clock.now = (clock.now // WINDOW_SECONDS + 1) * WINDOW_SECONDS + 1
    poll(*replicas)


def rows_like(source: np.ndarray, count: int) -> np.ndarray:
    return source[np.random.default_rng(count).integers(0, len(source), count)]


def written(store: FlakyStore) -> Iterator[QuerySums]:
    for key in store.keys(layout.all_query_sums()):
        yield read_document(store, key, QuerySums)


def total(store: FlakyStore) -> tuple[int, list[float]]:
    parts = [part.sums["image"] for part in written(store)]
    numbers = [np.frombuffer(part.sum, "<f8") for part in parts]
    return sum(part.rows for part in parts), np.sum(numbers, axis=0).tolist()


def test_sums_of_two_replicas_are_those_of_one_to_the_bit(
    store: FlakyStore, clock: Clock, replicas: tuple[Replica, Replica]
) -> None:
    rows = rows_like(KNOWN, 2 * FEWEST_ROWS)
    ask(replicas[0], clock, rows[:FEWEST_ROWS], [1, 7, 32])
    ask(replicas[1], clock, rows[FEWEST_ROWS:], [50])
    next_minute(clock, *replicas)
    of_two = total(store)
    for key in list(store.keys(layout.all_query_sums())):
        store.delete(key)
    alone = replica(store, clock, "c")
    ask(alone, clock, rows[::-1], [200, 3])
    next_minute(clock, alone)
    assert of_two == total(store)
    assert of_two[0] == 2 * FEWEST_ROWS


def test_fewer_than_256_queries_leave_no_replica(
    store: FlakyStore, clock: Clock, replicas: tuple[Replica, Replica]
) -> None:
    rows = rows_like(KNOWN, FEWEST_ROWS)
    ask(replicas[0], clock, rows[:-1], [51])
    next_minute(clock, *replicas)
    next_minute(clock, *replicas)
    assert list(written(store)) == []
    # They wait for more.
    ask(replicas[0], clock, rows[-1:], [1])
    next_minute(clock, *replicas)
    assert [part.sums["image"].rows for part in written(store)] == [FEWEST_ROWS]


def test_of_very_many_queries_some_are_left_out(
    store: FlakyStore, clock: Clock, replicas: tuple[Replica, Replica]
) -> None:
    for _ in range(3):
        assert replicas[0].embed(input=rows_like(KNOWN, 200).tolist()).status_code == 200
    next_minute(clock, replicas[0])
    assert [part.sums["image"].rows for part in written(store)] == [256]


def report(store: FlakyStore) -> DriftReport:
    return read_document(store, layout.drift_report(MODEL), DriftReport)


def test_drift_begins_with_strange_queries_and_ends_after_three_windows_of_known_ones(
    store: FlakyStore, clock: Clock, replicas: tuple[Replica, Replica]
) -> None:
    drifting = []
    for source in (KNOWN, STRANGE, KNOWN, KNOWN, KNOWN):
        for each in replicas:
            ask(each, clock, rows_like(source, FEWEST_ROWS), [256])
        next_minute(clock, *replicas)
        next_minute(clock, *replicas)
        drifting.append(report(store).drifting)
        assert list(written(store)) == []
    assert drifting == [[], ["image"], ["image"], ["image"], []]
    windows = report(store).modalities["image"].windows
    # One for each minute, of both replicas together.
    assert [each.rows for each in windows] == [2 * FEWEST_ROWS] * 5
    assert [each.level > 1 for each in windows] == [False, True, False, False, False]
    assert list(windows[0].nearest) == [f"{MODEL}-data-1"]


def test_sums_of_a_replica_that_ended_are_reported_by_another(
    store: FlakyStore, clock: Clock, replicas: tuple[Replica, Replica]
) -> None:
    first, second = replicas
    for each in replicas:
        ask(each, clock, rows_like(KNOWN, FEWEST_ROWS), [256])
    next_minute(clock, first, second)
    # The first would have reported them.
    ask(second, clock, rows_like(KNOWN, FEWEST_ROWS), [256])
    next_minute(clock, second)
    next_minute(clock, second)
    assert [each.rows for each in report(store).modalities["image"].windows] == [3 * FEWEST_ROWS]


def test_what_cannot_be_compared_is_removed(
    store: FlakyStore, clock: Clock, replicas: tuple[Replica, Replica]
) -> None:
    ask(replicas[0], clock, rows_like(KNOWN, FEWEST_ROWS), [256])
    next_minute(clock, replicas[0])
    store.delete(layout.version_manifest(MODEL, 1))
    next_minute(clock, replicas[0])
    assert list(store.keys(layout.all_query_sums())) == []
    assert list(store.keys(layout.drift_reports())) == []


def test_an_outage_loses_no_query(
    store: FlakyStore, clock: Clock, replicas: tuple[Replica, Replica]
) -> None:
    ask(replicas[0], clock, rows_like(KNOWN, FEWEST_ROWS), [256])
    store.broken = layout.all_query_sums()
    with pytest.raises(StorageUnavailable):
        next_minute(clock, replicas[0])
    store.broken = None
    poll(replicas[0])
    assert [part.sums["image"].rows for part in written(store)] == [FEWEST_ROWS]


def test_off_is_off(store: FlakyStore, clock: Clock) -> None:
    assert watch_queries(ServeSettings(store=store.uri), "a") is not None
    args = ServeSettings(store=store.uri, watch_queries=False)
    off = Replica(store, args, queries=watch_queries(args, "a"))
    assert off.queries is None
    off.publish(version=1)
    off.poll()
    assert off.embed(input=rows_like(KNOWN, FEWEST_ROWS).tolist()).status_code == 200
