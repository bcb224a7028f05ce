"""Whether all is well: the overview shows the parts of the endpoint beside those of the control plane."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cmcl.contract.version import PARTS
from service.page.endpoint import Endpoint
from tests.fakes.control_plane import ControlPlane
from tests.fakes.endpoint import FakeEndpoint
from tests.unit.service.page.browser import Browser, text_of
from tests.unit.service.page.trying import URL, open_plane

WORKS = {"encoders": {"eyes": "ok", "words": "ok"}, "replicas": {"RUNNING": 2, "STOPPING": 1}}


@pytest.fixture
def fake() -> FakeEndpoint:
    return FakeEndpoint({f"GET {PARTS}": WORKS})


@pytest.fixture
def plane(fake: FakeEndpoint, tmp_path: Path) -> Iterator[ControlPlane]:
    plane = open_plane(tmp_path, fake)
    yield plane
    plane.close()


def overview(plane: ControlPlane) -> str:
    return text_of(Browser(plane).get("/ui/").text)


def test_all_is_well_only_if_the_endpoint_answers(plane: ControlPlane) -> None:
    text = overview(plane)
    assert "✓ system works" in text
    assert "endpoint replicas encoder eyes encoder words" in text


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (
            {**WORKS, "encoders": {"eyes": "encoder 'eyes' is unavailable"}},
            "eyes encoder 'eyes' is",
        ),
        ({**WORKS, "replicas": {"RUNNING": 1, "STARTING": 1}}, "replicas 1 of 2 running"),
        ({**WORKS, "replicas": {}}, "replicas not known: Ray Serve's controller does not answer"),
        (httpx.Response(502), "endpoint The endpoint answered 502."),
    ],
    ids=["encoder", "replica", "controller", "proxy"],
)
def test_a_part_that_does_not_answer_is_a_problem(
    plane: ControlPlane, fake: FakeEndpoint, answer: dict[str, object] | httpx.Response, shown: str
) -> None:
    fake.answers[f"GET {PARTS}"] = answer
    text = overview(plane)
    assert "1 system 1 problem" in text
    assert shown in text
    assert "Queries may fail until this ends." in text


def test_an_endpoint_that_is_down_is_a_problem(plane: ControlPlane, fake: FakeEndpoint) -> None:
    fake.down = True
    assert "endpoint no answer" in overview(plane)


def test_the_endpoint_is_asked_once_for_all_pages_of_some_seconds(
    plane: ControlPlane, fake: FakeEndpoint
) -> None:
    for _ in range(3):
        overview(plane)
    assert len(fake.asked) == 1


def test_a_page_does_not_wait_for_a_slow_endpoint() -> None:
    answering = asyncio.Event()

    async def slow(_: httpx.Request) -> httpx.Response:
        await answering.wait()
        return httpx.Response(200, json=WORKS)

    async def ask() -> list[dict[str, str]]:
        endpoint = Endpoint(URL, None, httpx.MockTransport(slow))
        before = await endpoint.checks()
        answering.set()
        return [before, await endpoint.checks()]

    before, after = asyncio.run(ask())
    assert before == {"endpoint": "no answer within 1 s"}
    assert after["encoder eyes"] == "ok"


def test_a_control_plane_without_an_endpoint_shows_its_own_parts(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    text = overview(plane)
    plane.close()
    assert "✓ system works" in text
    assert "replicas" not in text
