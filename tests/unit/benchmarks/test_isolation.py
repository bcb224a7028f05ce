"""The benchmark of isolation: its figures, its goals, and an attack on a server of this machine."""

import asyncio
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from benchmarks.isolation.__main__ import ATTACKS
from benchmarks.isolation.attacker import (
    GO,
    OVER,
    READY,
    Attacker,
    AttackProcess,
    Target,
)
from benchmarks.isolation.bystander import PROBES, Bystander, Record, SteadyLoad
from benchmarks.isolation.result import (
    Goals,
    Windows,
    markdown,
    missed,
    percentile,
    processes,
    requests,
)
from benchmarks.isolation.watch import PROXY, REPLICA, ROLES, SERVICE, Sample
from tests.fakes.served_app import served

WINDOWS = Windows(begin=0, attack=100, over=200, end=300)
QUIET = {role: Sample(100.0, 20, 1024, frozenset({number})) for number, role in enumerate(ROLES)}


def work(begin: float, seconds: float = 0.01, status: int = 200, kind: str = "read") -> Record:
    return Record(kind, begin, seconds, status)


def steady(first: float, seconds: float = 0.01) -> list[Record]:
    """A hundred reads and a probe, one a second."""
    probe = work(first + 0.5, kind=PROBES[0])
    return [*(work(first + number, seconds) for number in range(100)), probe]


def figures(attacked: list[Record], later: Mapping[str, Sample] | None = None) -> dict[str, Any]:
    """Figures of a quiet window, an attack, and a quiet recovery."""
    records = [*steady(0), *attacked, *steady(200)]
    return {**requests(records, WINDOWS), **processes([QUIET], [later or QUIET])}


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 50), (0.99, 99), (0.991, 100), (1, 100), (0.001, 1)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    share: float, value: int
) -> None:
    assert percentile([float(each) for each in range(100, 0, -1)], share) == value
    assert percentile([7.0], share) == 7
    assert percentile([], share) is None


def test_a_steady_owner_misses_no_goal() -> None:
    found = figures(steady(100))
    assert missed(found, Goals()) == []
    assert (found["requests"], found["failed"]) == (100, 0)
    assert (found["quiet_p99_s"], found["p99_s"], found["healthz_worst_s"]) == (0.01, 0.01, 0.01)


@pytest.mark.parametrize("status", [0, 400, 404, 429, 500, 503, 507])
def test_every_answer_but_success_is_a_failure(status: int) -> None:
    found = figures([*steady(100), work(150, status=status)])
    assert (found["requests"], found["failed"]) == (101, 1)
    assert missed(found, Goals()) == ["failed"]


def test_an_answer_that_came_too_late_is_a_failure() -> None:
    found = figures([*steady(100), Record("read", 150, 10.1, 200, "timeout")])
    assert (found["failed"], found["failures"]) == (1, {"read: timeout": 1})


def test_a_request_belongs_to_the_window_in_which_it_began() -> None:
    found = figures([*steady(100), work(199.9, 60, 0), work(200.0, 0.01, 429), work(99, 0.1, 500)])
    names = ("failed", "failed_afterwards", "failed_quiet")
    assert [found[name] for name in names] == [1, 1, 1]
    assert found["failures"] == {"read: 0": 1}


def test_probes_are_counted_separately_and_a_failed_one_is_a_timeout() -> None:
    found = figures([*steady(100), Record(PROBES[1], 150, 0.001, 0, "ConnectError")])
    assert (found["requests"], found["failed"], found["healthz_failed"]) == (100, 0, 1)
    assert found["healthz_worst_s"] == 10
    assert found["failures"] == {f"{PROBES[1]}: ConnectError": 1}
    assert missed(found, Goals()) == ["healthz_failed", "healthz_worst_s"]


@pytest.mark.parametrize(("seconds", "misses"), [(0.5, False), (0.51, True)])
def test_the_slowest_hundredth_may_take_half_a_second(seconds: float, misses: bool) -> None:
    found = figures([*steady(100), work(150, seconds), work(151, seconds)])
    assert ("p99_s" in missed(found, Goals())) is misses


def test_p99_during_an_attack_may_be_three_times_that_before() -> None:
    records = [*steady(0, 0.25), *steady(100, 0.75)]
    found = {**requests(records, WINDOWS), **processes([QUIET], [QUIET])}
    assert missed(found, Goals()) == []
    assert missed({**found, "p99_s": 0.76}, Goals()) == ["p99_s"]


def test_an_attack_without_requests_reaches_no_goal() -> None:
    assert missed(figures([]), Goals()) == ["p99_s", "healthz_worst_s"]


@pytest.mark.parametrize(
    ("role", "later", "misses"),
    [
        (SERVICE, {"mib": 164.0}, []),
        (SERVICE, {"mib": 165.0}, ["end_mib.service"]),
        (SERVICE, {"mib": 401.0}, ["peak_mib.service", "end_mib.service"]),
        (PROXY, {"mib": 129.0}, ["peak_mib.proxy"]),
        (REPLICA, {"descriptors": 84}, []),
        (REPLICA, {"descriptors": 85}, ["descriptors_kept.replica"]),
        (REPLICA, {"descriptors": 1024}, ["descriptors.replica", "descriptors_kept.replica"]),
        (REPLICA, {"numbers": frozenset({99})}, ["ended.replica"]),
    ],
)
def test_memory_descriptors_and_processes_have_bounds(
    role: str, later: dict[str, Any], misses: list[str]
) -> None:
    found = figures(steady(100), {**QUIET, role: replace(QUIET[role], **later)})
    assert missed(found, Goals()) == misses


def test_a_peak_that_was_given_back_is_a_peak_alone() -> None:
    high = {**QUIET, SERVICE: replace(QUIET[SERVICE], mib=1714.0)}
    found = {**figures(steady(100)), **processes([QUIET], [high, QUIET])}
    assert (found["peak_mib"][SERVICE], found["end_mib"][SERVICE]) == (1714, 100)
    assert missed(found, Goals()) == ["peak_mib.service"]


@pytest.mark.parametrize(("state", "misses"), [("published", []), ("failed", ["dataset"])])
def test_a_dataset_that_was_posted_is_learned(state: str, misses: list[str]) -> None:
    found = {**figures(steady(100)), "dataset": {"state": state, "seconds": 4.0}}
    assert missed(found, Goals()) == misses


def page(found: dict[str, Any]) -> str:
    shown = {**found, "words": "No key.", "attacker": {"connections": 4}, "recovery_s": 6.0}
    shown["missed"] = missed(shown, Goals())
    goals = vars(Goals())
    attacks = {"bombs": shown, "others": {"words": "", "error": "no room", "missed": ["error"]}}
    return markdown({"attacks": attacks, "goals": goals, "configuration": {}, "machine": {}})


def test_the_page_marks_what_misses_its_goal() -> None:
    found = page(figures([*steady(100), work(150, 8, 503), work(150, 8, 503)]))
    assert (
        "| bombs | **2** | 102 | 0 | 0.01 | **8** | 0.01 | 100 | 100 | 100 | 100 | 6 | – |  |"
        in found
    )
    assert "| bombs | read: 503: 2 |" in found
    assert "**0 of 2 attacks" in found
    assert "others was **not tested**: no room" in found
    assert "**1 of 2 attacks" in page(figures(steady(100)))


ANSWER = {
    "id": "an-id",
    "key": "a-key",
    "name": "a-name",
    "dataset": {"id": "ds-1"},
    "job": {"id": "job-1", "state": "published"},
}


@dataclass
class System:
    """Both servers at one address, which answer everything but searches with 200, and what was asked."""

    address: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def system() -> Iterator[System]:
    app, made = FastAPI(openapi_url=None), System()

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def answer(path: str, request: Request) -> Response:
        made.asked.append((request.method, f"/{path}"))
        with suppress(ClientDisconnect):
            await request.body()
        return JSONResponse(ANSWER, 503 if path.endswith("search") else 200)

    with served(app) as made.address:
        yield made


def target(address: str, folder: Path, *, seconds: float = 0.6, scale: float = 0.001) -> Target:
    keys = dict.fromkeys(("read", "write", "train", "embed", "admin"), "a-key")
    widths, prefix = {"x": 4, "y": 8}, folder.as_uri()
    return Target(address, address, keys, "m", widths, prefix, seconds, scale)


def test_steady_work_is_recorded_and_its_failures_with_it(system: System) -> None:
    kinds = ("embed", "search", "read", "write", "add", "stream", *PROBES)
    rates = dict.fromkeys(kinds, 2.0)
    bob = Bystander(system.address, system.address, "a-key", "m", "x", [0.5] * 4, "steady", rates)
    with SteadyLoad(bob) as working:
        found: list[Record] = []
        deadline = time.monotonic() + 30
        while len({each.kind for each in found}) < len(kinds) + 1 and time.monotonic() < deadline:
            time.sleep(0.2)
            found += working.take()
    assert {each.kind for each in found} == {*kinds, "part"}
    assert {each.kind for each in found if each.failed} == {"search"}
    assert {each.status for each in found if each.failed} == {503}


def run_attack(name: str, aim: Target) -> dict[str, int]:
    process = AttackProcess(ATTACKS[name], aim)
    try:
        process.prepare(60)
        process.go()
        process.wait(60)
        return process.counts(60)
    finally:
        process.end()


def test_a_flood_repeats_requests_from_another_address(system: System, tmp_path: Path) -> None:
    counts = run_attack("metrics-flood", target(system.address, tmp_path, scale=0.01))
    assert counts["200"] > 2
    assert set(system.asked) == {("GET", "/metrics")}
    assert counts["most at once"] == 2


# Requests that an attack must have made by its end; the other attacks send no complete request.
ASKED = {
    "wrong-kinds": ("POST", "/v1/webhooks"),
    "wrong-shards": ("POST", "/v1/datasets"),
    "many-keys-rows": ("POST", "/v1/embeddings"),
    "metrics-flood": ("GET", "/metrics"),
    "openapi-flood": ("GET", "/openapi.json"),
    "half-bodies": ("POST", "/v1/datasets"),
    "event-streams": ("GET", "/v1/events"),
    "many-shards": ("DELETE", "/v1/datasets/ds-1"),
    "stalled-files": ("PUT", "/v1/uploads/an-id/file"),
    "stalled-bodies": ("DELETE", "/v1/keys/an-id"),
    "unread-embeddings": ("POST", "/v1/embeddings"),
    "unread-errors": ("POST", "/v1/webhooks"),
    "nested-json": ("POST", "/v1/embeddings"),
    "wrong-keys": ("GET", "/v1/models"),
    "pipelined-probes": ("GET", "/healthz"),
    "costly-searches": ("POST", "/v1/collections/mallory-costly/search"),
    "minting": ("DELETE", "/v1/keys/an-id"),
    "fill-collections": ("DELETE", "/v1/collections/mallory-full"),
    "wide-branches": ("DELETE", "/v1/models/mallory-wide"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_does_what_it_is_for_within_its_window(
    name: str, system: System, tmp_path: Path
) -> None:
    here, there = multiprocessing.Pipe()
    attacker = Attacker(target(system.address, tmp_path, seconds=0.3), there)
    here.send(GO)

    async def attack() -> None:
        await ATTACKS[name](attacker)
        await attacker.remove_made()

    asyncio.run(attack())
    assert [here.recv(), here.recv()] == [READY, OVER]
    assert any(attacker.counts.values())
    deadline = time.monotonic() + 30
    while name in ASKED and ASKED[name] not in system.asked:
        assert time.monotonic() < deadline, system.asked
        time.sleep(0.05)
    here.close()
    there.close()
