"""`cmcl apply`: no secret of a key or webhook that exists is lost when a request fails."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cmcl import Client, CmclError
from cmcl.cli import apply_plan
from cmcl.cli.apply_file import read_file
from cmcl.cli.errors import CreatedTwice, Exit
from tests.fakes.control_plane import ControlPlane
from tests.unit.client.command_line import Cmcl
from tests.unit.client.either import in_process


@dataclass(frozen=True)
class Created:
    """A file with one entry, and the client's methods for what it creates."""

    text: str
    lists: str
    creates: str
    removes: str


KEY = Created("keys: [{name: a, scopes: [read]}]", "keys", "create_key", "revoke_key")
WEBHOOK = Created(
    "webhooks: [{url: 'https://example.com/x'}]", "webhooks", "create_webhook", "delete_webhook"
)


@pytest.fixture(params=[KEY, WEBHOOK], ids=["key", "webhook"])
def created(request: pytest.FixtureRequest) -> Created:
    assert isinstance(request.param, Created)
    return request.param


@pytest.fixture
def active(published_plane: ControlPlane, created: Created) -> Iterator[Callable[[], set[str]]]:
    """Ids of keys or webhooks that exist."""
    with in_process("blocking", published_plane.app) as client:
        found = getattr(client, created.lists)
        yield lambda: {each.id for each in found() if not getattr(each, "revoked_at", None)}


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


@pytest.fixture
def created_twice(created: Created, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone else creates the same at the same time."""
    create = getattr(Client, created.creates)

    def twice(*given: Any, **options: Any) -> Any:
        create(*given, **options)
        return create(*given, **options)

    monkeypatch.setattr(Client, created.creates, twice)


def test_a_secret_is_stored_before_anything_after_the_creation_can_fail(
    cmcl: Cmcl,
    failed_apply: Callable[[], str],
    created: Created,
    active: Callable[[], set[str]],
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = getattr(Client, created.creates)

    def the_last_answer(*given: Any, **options: Any) -> Any:
        made = create(*given, **options)
        restart.setattr(Client, created.lists, unavailable)
        return made

    with monkeypatch.context() as restart:
        restart.setattr(Client, created.creates, the_last_answer)
        error = failed_apply()
    written = json.loads(kept.read_text())
    assert active() == {written["id"]}
    assert written["secret"]
    assert f"it was created ({written['id']}) and its secret is in the file" in error
    assert "1 of 1 changes were made" in error
    assert cmcl("apply", f"--file={kept.with_name('cmcl.yaml')}") == "nothing to change\n"


@pytest.mark.usefixtures("created_twice")
def test_the_file_has_no_secret_of_what_was_removed(
    failed_apply: Callable[[], str], active: Callable[[], set[str]], kept: Path
) -> None:
    earlier = '{"kind": "key", "name": "earlier"}\n'
    kept.write_text(earlier)
    error = failed_apply()
    (twin,) = active()
    assert f"someone else created the same at the same time ({twin})" in error
    assert "0 of 1 changes were made" in error
    assert kept.read_text() == earlier


@pytest.mark.usefixtures("created_twice")
def test_a_secret_stays_stored_if_its_key_or_webhook_cannot_be_removed(
    failed_apply: Callable[[], str],
    created: Created,
    active: Callable[[], set[str]],
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Client, created.removes, unavailable)
    error = failed_apply()
    written = json.loads(kept.read_text())
    assert written["id"] in active()
    assert f"{written['id']} could not be removed (the server restarts): remove it" in error


def test_what_may_have_been_created_without_its_secret_is_named(
    failed_apply: Callable[[], str], created: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, created.creates, unavailable)
    listed_by = f"cmcl {created.lists.removesuffix('s')} list"
    assert f"if `{listed_by}` shows that it was created, remove it" in failed_apply()


def test_of_two_people_who_create_the_same_one_creates_it(
    published_plane: ControlPlane, created: Created, active: Callable[[], set[str]], tmp_path: Path
) -> None:
    file = tmp_path / "cmcl.yaml"
    file.write_text(created.text)
    with in_process("blocking", published_plane.app) as client:
        (first,), (second,) = (
            apply_plan.plan_changes(client, read_file(file), prune=False).changes for _ in range(2)
        )
        assert first.check
        assert second.check
        made, twin = first.make(client), second.make(client)
        assert made
        assert twin
        with pytest.raises(CreatedTwice, match=twin["id"]):
            first.check(client, made["id"])
        second.check(client, twin["id"])
    assert active() == {twin["id"]}
