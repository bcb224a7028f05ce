"""compose/serve.py: applications are deployed again after Ray's head restarted, and SIGTERM ends it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.compose.serve import Keeper, NotAccepted, keep
from tests.architecture.repository import ROOT

SCRIPT = ROOT / "deploy" / "compose" / "serve.py"
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose" / "serve.yaml").read_text())


class Head:
    """The part of a Ray head's dashboard that is used: a restart loses its applications.

    It ignores an unchanged configuration, regardless of its outcome.
    """

    def __init__(self) -> None:
        self.is_up = True
        self.accepts = True
        self.states: dict[str, str] = {}
        self.content: bytes | None = None
        self.handed_over: list[Any] = []

    def restart(self) -> None:
        self.is_up, self.states = True, {}

    def answer(self, request: httpx.Request) -> httpx.Response:
        if not self.is_up:
            raise httpx.ConnectError("connection refused", request=request)
        assert request.url.path == "/api/serve/applications/"
        if request.method == "GET":
            served = {name: {"status": state} for name, state in self.states.items()}
            messages = json.dumps({"applications": served}).encode()
            return httpx.Response(200, content=messages if self.content is None else self.content)
        if request.method == "DELETE":
            self.states = {}
            return httpx.Response(200)
        if not self.accepts:
            return httpx.Response(400, text="no such field: replica")
        config = json.loads(request.content)
        self.handed_over.append(config)
        self.states = {each["name"]: "RUNNING" for each in config["applications"]} | self.states
        return httpx.Response(200)


class AllDone(Exception):
    """All steps are taken."""


class Steps:
    """Steps that run in the pauses between two checks."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self._steps = [*steps]

    def __call__(self, seconds: float) -> None:
        assert seconds > 0
        if not self._steps:
            raise AllDone
        self._steps.pop(0)()


@pytest.fixture
def head() -> Head:
    return Head()


def _messages(head: Head, *steps: Callable[[], None]) -> list[str]:
    """Log messages of serve.py over those steps."""
    messages: list[str] = []
    client = httpx.Client(base_url="http://ray:8265", transport=httpx.MockTransport(head.answer))
    with client, suppress(AllDone):
        keep(Keeper(client, CONFIG, messages.append), Steps(*steps))
    return messages


def _nothing() -> None:
    """A step in which nothing happens."""


def test_what_is_served_is_handed_over_once(head: Head) -> None:
    messages = _messages(head, _nothing, _nothing)
    assert head.handed_over == [CONFIG]
    assert messages == ["embeddings is deployed", "embeddings is RUNNING"]


def test_a_restarted_head_serves_again(head: Head) -> None:
    def fall() -> None:
        head.is_up = False

    messages = _messages(head, _nothing, fall, head.restart, _nothing)
    assert head.handed_over == [CONFIG, CONFIG]
    assert messages[2:] == [
        "Ray does not respond: connection refused",
        "embeddings is deployed",
        "embeddings is RUNNING",
    ]


def test_what_could_not_be_deployed_is_tried_again(head: Head) -> None:
    messages = _messages(
        head, lambda: head.states.update(embeddings="DEPLOY_FAILED"), _nothing, _nothing
    )
    assert len(head.handed_over) == 2
    assert messages[1:] == ["embeddings is DEPLOY_FAILED", "embeddings is RUNNING"]


@pytest.mark.parametrize(
    "content",
    [b"<html>", b"\xff", b"[]", b"{}", b'{"applications": []}', b'{"applications": null}'],
)
def test_an_answer_that_is_no_list_of_applications_is_waited_out(
    head: Head, content: bytes
) -> None:
    head.content = content

    def repair() -> None:
        head.content = None

    messages = _messages(head, repair, _nothing)
    assert messages[0].startswith("Ray does not respond: no list of applications, but ")
    assert messages[1:] == ["embeddings is deployed", "embeddings is RUNNING"]


def test_an_application_of_a_configuration_before_is_replaced(head: Head) -> None:
    head.states = {"embeddings": "RUNNING"}
    _messages(head, _nothing)
    assert head.handed_over == [CONFIG]


def test_what_serves_is_left_alone(head: Head) -> None:
    _messages(head, *(lambda state=state: head.states.update(embeddings=state) for state in STATES))
    assert len(head.handed_over) == 1


# Of Ray's ApplicationStatus; a replica that returns repairs the second.
STATES = ("DEPLOYING", "UNHEALTHY", "RUNNING")


def test_a_configuration_that_ray_refuses_ends_it(head: Head) -> None:
    head.accepts = False
    with pytest.raises(NotAccepted, match="no such field: replica"):
        _messages(head)


@contextmanager
def _script(tmp_path: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """serve.py by itself, beside a head of which the dashboard is at that port of this machine."""
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, str(SCRIPT), f"http://127.0.0.1:{port}", str(config)]
    quiet = {**os.environ, "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


def test_sigterm_ends_it_well_while_ray_is_unavailable(tmp_path: Path) -> None:
    # Port 1 is closed.
    with _script(tmp_path, 1) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Ray does not respond")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_sigterm_ends_an_unanswered_request(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        with _script(tmp_path, silent.getsockname()[1]) as process, silent.accept()[0]:
            process.send_signal(signal.SIGTERM)
            messages, _ = process.communicate(timeout=120)
    assert (process.returncode, messages) == (0, ""), "it waited until its timeout"
