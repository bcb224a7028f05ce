"""`cmcl apply`: no secret of a key or webhook that exists is lost when a request fails."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cmcl import Client, CmclError
from cmcl.cli.errors import Exit
from tests.unit.client.command_line import Cmcl


@dataclass(frozen=True)
class Created:
    """A file with one entry, and the client's methods for what it creates."""

    text: str
    lists: str
    creates: str


KEY = Created("keys: [{name: a, scopes: [read]}]", "keys", "create_key")
WEBHOOK = Created("webhooks: [{url: 'https://example.com/x'}]", "webhooks", "create_webhook")


@pytest.fixture(params=[KEY, WEBHOOK], ids=["key", "webhook"])
def created(request: pytest.FixtureRequest) -> Created:
    assert isinstance(request.param, Created)
    return request.param


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "secrets.jsonl"


@pytest.fixture
def failed_apply(cmcl: Cmcl, created: Created, tmp_path: Path, kept: Path) -> Callable[[], str]:
    """Apply the file and return the error."""
    file = tmp_path / "cmcl.yaml"
    file.write_text(created.text)
    return lambda: cmcl("apply", f"--file={file}", f"--secrets={kept}", code=Exit.FAILED)


def unavailable(*_: object, **__: object) -> None:
    raise CmclError("the server restarts", 503)


def test_what_may_have_been_created_without_its_secret_is_named(
    failed_apply: Callable[[], str], created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, created.creates, unavailable)
    listed_by = f"cmcl {created.lists.removesuffix('s')} list"
    assert f"if `{listed_by}` shows that it was created, remove it" in failed_apply()


def test_a_secret_stays_stored_if_a_later_change_fails(
    cmcl: Cmcl, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Client.create_key

    def only_the_first(client: Client, name: str, *given: Any) -> Any:
        return create(client, name, *given) if name == "first" else unavailable()

    monkeypatch.setattr(Client, "create_key", only_the_first)
    file = tmp_path / "cmcl.yaml"
    file.write_text("keys: [{name: first, scopes: [read]}, {name: second, scopes: [read]}]")
    error = cmcl("apply", f"--file={file}", f"--secrets={kept}", code=Exit.FAILED)
    assert "1 of 2 changes were made" in error
    written = json.loads(kept.read_text())
    assert (written["name"], bool(written["secret"])) == ("first", True)
