"""`POST /internal/announcements`: whoever reaches the port can bring about a look, and no more."""

import json

import pytest
from fastapi import FastAPI

from cmcl.contract.version import ANNOUNCEMENTS, Announcement
from tests.fakes.app_client import AppClient
from workers.serve.api.errors import install_error_handlers
from workers.serve.api.internal import announcements_router


class Told:
    """An announcer that remembers."""

    def __init__(self) -> None:
        self.models: list[str] = []

    def announce(self, model: str) -> None:
        self.models.append(model)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def client(told: Told) -> AppClient:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(announcements_router(told))
    return AppClient(app)


def test_what_the_control_plane_sends_is_passed_on(client: AppClient, told: Told) -> None:
    news = Announcement(model="scenes", generation=4, revision=9)
    answer = client.post(ANNOUNCEMENTS, json=news.model_dump())
    assert answer.status_code == 202
    assert told.models == ["scenes"]


def test_a_newer_control_plane_may_tell_more(client: AppClient, told: Told) -> None:
    body = {"model": "scenes", "generation": 4, "reason": "rolled back"}
    assert client.post(ANNOUNCEMENTS, json=body).status_code == 202
    assert told.models == ["scenes"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "body is b''"),
        (b"\xff\xfe", 400, "body"),
        (b"[1]", 400, "body"),
        (b'{"generation": 1}', 400, "model is"),
        (b'{"model": "../../etc", "generation": 1}', 400, "model is '../../etc'"),
        (b'{"model": "scenes", "generation": 0}', 400, "generation is 0"),
        (b'{"model": "scenes", "generation": 1, "revision": -1}', 400, "revision is -1"),
        (json.dumps({"model": "a" * 5000}).encode(), 413, "4096 bytes"),
    ],
)
def test_anything_else_is_refused_and_wakes_nobody(
    client: AppClient, told: Told, body: bytes, status: int, words: str
) -> None:
    answer = client.post(ANNOUNCEMENTS, content=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert told.models == []
