"""The demo's querying client counts every unexpected response."""

import json
import time

import pytest

from cmcl.demo.queries import QueryLoad


@pytest.fixture
def load() -> QueryLoad:
    return QueryLoad("127.0.0.1", 9, "scenes", {"image": [[1.0, 2.0]]}, rate=100)


def body(*values: float, model: str = "scenes@1") -> bytes:
    return json.dumps({"model": model, "data": [{"embedding": list(values)}]}).encode()


def test_a_repeated_response_is_not_a_failure(load: QueryLoad) -> None:
    for _ in range(2):
        load._check(0, 200, body(0.6, 0.8), 0.0)
    load._check(0, 200, body(0.8, 0.6, model="scenes@2"), 0.0)
    assert (load.report.sent, load.report.failures) == (3, [])
    assert sorted(load.report.first_seen) == ["scenes@1", "scenes@2"]


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"model": "scenes@1", "data": []}',
        b'{"model": "scenes@1", "data": [{"embedding": null}]}',
        body(1.0, model="scenes"),
        body(),
        body(float("nan"), 1.0),
    ],
)
def test_a_response_of_unexpected_form_is_a_failure(load: QueryLoad, answer: bytes) -> None:
    load._check(0, 200, answer, 0.0)
    assert (load.report.sent, len(load.report.failures)) == (1, 1)


@pytest.mark.parametrize("other", [body(0.8, 0.6), body(0.6), body(0.6, float("nan"))])
def test_different_responses_of_one_version_are_a_failure(load: QueryLoad, other: bytes) -> None:
    load._check(0, 200, body(0.6, 0.8), 0.0)
    load._check(0, 200, other, 0.0)
    assert load.report.failures == ["scenes@1 answered query 0 in two ways"]


def test_an_unreachable_server_is_a_failure_each_time(load: QueryLoad) -> None:
    load.start()
    deadline = time.monotonic() + 60
    while load.report.sent < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    report = load.stop()
    assert report.sent == len(report.failures) >= 2
